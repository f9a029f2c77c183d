"""Pictures and texts without labels that are in no data set, in the place of one: all of them are its test split."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from distillery.core.errors import UserError, did_you_mean_beside
from distillery.data.decoding import MEND, decode
from distillery.data.file_memory import File, remembered
from distillery.data.images import EncodedImages, TensorImages, Transform
from distillery.data.picture_files import find_pictures, hidden
from distillery.data.raw_data import RawData, Split, Texts
from distillery.data.sources.image_folder import error_in_decoding
from distillery.data.sources.table import Table, read_texts
from distillery.data.sources.text_files import opened, read_csv, read_jsonl

TABLES = {".csv": read_csv, ".tsv": read_csv, ".jsonl": read_jsonl, ".json": read_jsonl}
TEXT = ".txt"


@dataclass
class Unseen:
    """Samples that can be read, and what was wrong with the others.

    Attributes:
        inputs: `EncodedImages` or `Texts`.
        columns: what tells them apart, [N] each: `path`, and of texts `line`, `text` and `second`.
        problems: a message for each file, or for the rows of a file, that is left out.
    """

    inputs: EncodedImages | Texts
    columns: dict[str, list[Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def raw(self, classes: Sequence[str], targets: Tensor) -> RawData:
        """As a data set without training samples, with these classes and targets in the place of unknown ones."""
        whole = Split.whole(self.inputs, targets)
        return RawData("the given files", tuple(classes), replace(whole, indices=whole.indices[:0]), whole)


@dataclass(frozen=True)
class NamedPictures:
    """Picture files by their paths."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, position: int) -> tuple[Path, str]:
        return self.paths[position], str(self.paths[position])

    def content(self) -> bytes:
        return b"\n".join(map(os.fsencode, self.paths))


class FittedPictures(EncodedImages):
    """Pictures in the shape of images that a data set holds in memory: grey if these are, and of their size.

    A picture of this size is served as it is. For any other, the shorter side is scaled, and the centre is cropped.
    """

    def __init__(self, pictures: NamedPictures, shape: tuple[int, int, int]) -> None:
        channels, height, width = shape
        super().__init__(pictures, max(height, width))
        self.shape = shape
        fitted = [v2.Resize(max(height, width)), v2.CenterCrop((height, width))]
        # By Pillow, whose greys are exact: of a tensor, `Grayscale` makes 254 of 255.
        self.fitted = v2.Compose([v2.ToPILImage(), v2.Grayscale(channels), *fitted, v2.PILToTensor()])

    def batch(self, index: Tensor, transform: Transform, seed: int, epoch: int) -> Tensor:
        pictures = [self.fitted(decode(*self.pictures.open(position))) for position in index.tolist()]
        return TensorImages(torch.stack(pictures)).batch(torch.arange(len(index)), transform, seed, epoch)


def unseen_pictures(given: Iterable[str], shape: tuple[int, int, int] | None, size: int, background: str) -> Unseen:
    """The pictures in files and folders, in the order given; each is decoded once to find the broken ones.

    Args:
        given: files, folders, or patterns such as `**/*.jpg`.
        shape: of images in memory, see `FittedPictures`; None: they are `EncodedImages`.
        size, background: of these.
    """
    paths, problems = _paths(given, _pictures_in, "picture")
    files = [File(os.fsencode(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    answers = remembered(error_in_decoding, files, "Checking pictures")
    problems += [answer.removesuffix(MEND) for answer in answers if answer]
    whole = [path for path, answer in zip(paths, answers, strict=True) if not answer]
    pictures = NamedPictures(whole)
    images = EncodedImages(pictures, size, background) if shape is None else FittedPictures(pictures, shape)
    return Unseen(images, {"path": [str(path) for path in whole]}, problems)


def unseen_texts(given: Iterable[str], source: Mapping[str, Any], words: bool) -> Unseen:
    """The texts in files and folders: the lines of a `.txt` that are not blank, a column of a table.

    Args:
        given: files, folders, or patterns such as `**/*.txt`.
        source: the settings of the run's source, of which `text`, `second`, `words`, `separator`, `quotes` and
            `encoding` count. Without the first, the column is `text`.
        words: whether texts are lists of words; those of a `.txt` are separated by blanks.
    """
    paths, problems = _paths(given, lambda folder: _files_in(folder, {TEXT, *TABLES}), "text")
    text, second = source.get("text") or "text", source.get("second")
    column = (source.get("words") or "words") if words else None
    rows: dict[str, list[Any]] = {"path": [], "line": [], "text": []} | ({"second": []} if second else {})
    for path in paths:
        try:
            table = _table(path, text, second, column, source)
            read, empty = read_texts(table, text, second, column)
        except UserError as error:
            problems.append(str(error))
            continue
        if empty:
            problems.append(f"{table.where}: the text is empty in {table.places(empty)}: left out.")
        kept = [row for row in range(len(table)) if row not in {*empty}]
        rows["path"] += [str(path)] * len(kept)
        columns = {"line": table.lines, "text": read["first"], "second": read.get("second")}
        for name, values in columns.items():
            if values is not None:
                rows[name] += [values[row] for row in kept]
    texts = Texts(rows["text"], rows.get("second"))
    if words:  # each has its place as its label, by which its prediction is found again
        texts = replace(texts, labels=[list(range(len(each))) for each in rows.pop("text")])
    return Unseen(texts, rows, problems)


def _table(path: Path, text: str, second: str | None, words: str | None, source: Mapping[str, Any]) -> Table:
    suffix = path.suffix.lower()
    encoding = source.get("encoding")
    if suffix == TEXT:
        if second:
            raise UserError(
                f"'{path}': the run reads pairs of texts, from a table with the columns {text} and {second}."
            )
        with opened(path, encoding, "") as (file, _):
            lines = {number: line.rstrip("\r\n") for number, line in enumerate(file, 1) if line.strip()}
        values = [line.split() if words else line for line in lines.values()]
        return Table(f"'{path}'", {words or text: values}, list(lines))
    if suffix not in TABLES:
        raise UserError(f"'{path}' is not a file of texts, which are {', '.join((TEXT, *TABLES))}.")
    if TABLES[suffix] is read_jsonl:
        return read_jsonl(path, encoding)
    return read_csv(path, source.get("separator"), source.get("quotes", True), encoding)


def _paths(given: Iterable[str], inside: Callable[[Path], Iterable[Path]], noun: str) -> tuple[list[Path], list[str]]:
    """The files, each once, in the order given; and what is wrong with the names that stand for none."""
    found: dict[Path, None] = {}
    problems: list[str] = []
    for name in given:
        path = Path(name).expanduser()
        if path.is_file():
            own = [path]
        elif path.is_dir():
            own = list(inside(path))
        else:
            root = Path(path.anchor)
            own = sorted(each for each in root.glob(str(path.relative_to(root))) if each.is_file())
        if not own:
            what = f"the folder has no {noun} file" if path.is_dir() else "there is no such file"
            problems.append(f"'{name}': {what}.{'' if path.exists() else did_you_mean_beside(path, Path.is_file)}")
        found |= dict.fromkeys(own)
    return list(found), problems


def _pictures_in(folder: Path) -> Iterator[Path]:
    files, _ = find_pictures(folder, ["."])
    return (Path(os.path.normpath(files.path(position))) for position in range(len(files)))


def _files_in(folder: Path, suffixes: Collection[str]) -> list[Path]:
    below = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    return sorted(path for path in below if not any(map(hidden, path.relative_to(folder).parts)))
