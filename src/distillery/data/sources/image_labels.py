"""Your own images with any number of labels each, which a table lists."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distillery.core.errors import UserError
from distillery.data.decoding import refuse_colour
from distillery.data.images import EncodedImages
from distillery.data.picture_files import PictureFiles, content_keys
from distillery.data.raw_data import RawData, Split
from distillery.data.sources.duplicates import apart
from distillery.data.sources.folder_layout import split_of
from distillery.data.sources.image_folder import Found, decodable
from distillery.data.sources.table import Columns, Samples, Table, read_samples
from distillery.data.sources.table_splits import classes_of, label_matrix
from distillery.data.sources.text_files import read_csv, read_jsonl


def image_labels(
    root: str | Path,
    labels: str | Path = "labels.csv",
    file: str = "file",
    label: str = "labels",
    split: str | None = None,
    label_separator: str = "|",
    classes: Sequence[Any] | None = None,
    size: int = 224,
    test_fraction: float = 0.2,
    check: bool = True,
    broken: Literal["refuse", "skip"] = "refuse",
    background: str = "white",
    drop_duplicates: bool = True,
) -> RawData:
    """Images below `root` that a CSV or JSON Lines file lists, each with any number of labels (task=multi_label).

    Pictures of train without any value in the column of labels are unlabelled. Pictures that the table does not list
    are not read. The index of a sample is its position among the rows of its split that remain.

    Args:
        labels: the table; a relative path is below `root`.
        file: the column of the pictures' paths below `root`.
        label: the column of the labels: lists, or text with `label_separator` between them, see `Columns.multi_label`.
        split: the column that says train, val or test; None: `test_fraction` of the pictures are for test.
        classes: the labels in order; None: those that occur, sorted.
        size, check, broken, background, drop_duplicates: see `image_folder`.

    Raises:
        UserError: the table or a picture is missing, a picture is listed twice or cannot be decoded, or a row has no
            file, no labels (of val and test) or another split.
    """
    root, path = Path(root), Path(root) / labels
    refuse_colour(background)
    table = read_jsonl(path) if path.suffix == ".jsonl" else read_csv(path)
    columns = Columns(file, label, classes=classes, multi_label=True, label_separator=label_separator)
    notes = list(table.notes)
    samples: dict[str, Samples] = {}
    for part, rows in _parts(table, split).items():
        samples[part], _ = read_samples(table.take(rows), columns, need_labels=part != "train")
    listed = Counter(name for each in samples.values() for name in each.columns["first"])
    if twice := [name for name, number in listed.items() if number > 1]:
        raise UserError(f"{table.where} lists a picture twice: {twice[0]}. Put all of its labels in one row.")
    names = classes_of(columns, _labelled(samples["train"]) or samples["test"])
    parts = {
        part: Found(_files(root, each), label_matrix(_known(each, names), names)) for part, each in samples.items()
    }
    if check:
        parts = {part: decodable(found, part, broken == "skip", notes) for part, found in parts.items()}
    keys = dict(zip(parts, content_keys([found.files for found in parts.values()]), strict=True))
    of_rows = {part: [tuple(row) for row in found.targets.nan_to_num(-1).tolist()] for part, found in parts.items()}
    for part, positions in apart(keys, of_rows, "pictures", drop_duplicates, notes).items():
        parts[part] = parts[part].take(positions)
    splits = {
        part: Split.whole(EncodedImages(files, size, background), targets, ~targets.isnan().any(1))
        for part, (files, targets) in parts.items()
    }
    if "test" not in splits:
        splits["test"], splits["train"] = splits["train"].divided(round(test_fraction * len(parts["train"].targets)))
        notes.append(f"test: {len(splits['test'].indices):,} pictures drawn from all, always the same ones")
    return RawData(root.resolve().name, names, splits["train"], splits["test"], splits.get("val"), tuple(notes))


def _parts(table: Table, split: str | None) -> dict[str, list[int]]:
    """The rows of each split."""
    if split is None:
        return {"train": list(range(len(table)))}
    named = [split_of(str(value or "")) for value in table.column("split", split)]
    table.refuse(split, table.column("split", split), "is no split", lambda value: not split_of(str(value or "")))
    parts = {part: [row for row, own in enumerate(named) if own == part] for part in ("train", "val", "test")}
    if not parts["train"] or not (parts["test"] or parts["val"]):
        raise UserError(f"{table.where}: column '{split}' has no row for train, or none for test.")
    if not parts["test"]:
        parts["test"] = parts.pop("val")
    return {part: rows for part, rows in parts.items() if rows}


def _labelled(samples: Samples) -> Samples:
    assert samples.labels is not None
    return samples.take([row for row, label in enumerate(samples.labels) if label is not None])


def _known(samples: Samples, names: Sequence[str]) -> Sequence[Any]:
    """The labels of each picture. Raises UserError: one is none of these."""
    assert samples.labels is not None
    samples.refuse("labels", samples.labels, "has an unknown label", lambda own: bool({*(own or ())} - {*names}))
    return samples.labels


def _files(root: Path, samples: Samples) -> PictureFiles:
    paths = [root / name for name in samples.columns["first"]]
    for line, path in zip(samples.lines, paths, strict=True):
        if not path.is_file():
            raise UserError(f"{samples.where}, {samples.unit} {line}: there is no picture '{path}'.")
    found = [path.stat() for path in paths]
    encoded = np.array([name.encode() for name in samples.columns["first"]])
    sizes, times = (np.array([getattr(each, what) for each in found]) for what in ("st_size", "st_mtime_ns"))
    return PictureFiles(root, encoded, sizes, times, Counter())
