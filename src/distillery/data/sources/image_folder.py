"""Your own images: one folder per class."""

import os
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.data.decoding import EXTENSIONS, decode, refuse_colour
from distillery.data.file_memory import remembered
from distillery.data.images import EncodedImages, JoinedPictures
from distillery.data.picture_files import PictureFiles, content_keys, find_pictures
from distillery.data.raw_data import RawData, Split
from distillery.data.sources.duplicates import apart
from distillery.data.sources.folder_layout import class_folders, refuse_other_classes, split_folders

SHOWN = 3  # examples in a message


class Found(NamedTuple):
    """The pictures of a split and their targets, [N] or [N, C]."""

    files: PictureFiles
    targets: Tensor

    def take(self, positions: list[int]) -> "Found":
        return Found(self.files.take(positions), self.targets[positions])


def image_folder(
    root: str | Path,
    size: int = 224,
    test_fraction: float = 0.2,
    check: bool = True,
    broken: Literal["refuse", "skip"] = "refuse",
    background: str = "white",
    drop_duplicates: bool = True,
    unlabelled: str | Path | None = None,
) -> RawData:
    """Images in `root`/{train,val,test}/class/, or in `root`/class/ with `test_fraction` of them for test.

    If a folder has only train and val (as ImageNet has), val becomes the test split: nothing may be selected on the
    images that give the score. The remarks say so, and count what was left out: files that are no pictures, broken
    ones, and duplicates. The index of a sample is its position in the sorted list of the split's remaining files, which
    unlabelled ones follow: those in `root`/unlabelled/ and below.

    Args:
        size: side of the served squares.
        check: decode every picture before training. The outcome is remembered for files that do not change.
        broken: whether `check` refuses broken files, or leaves them out.
        background: the colour that shows through transparent pixels.
        drop_duplicates: leave out pictures that equal, byte for byte, one of their own split (all of these if their
            classes differ) or of a later one of unlabelled, train, val and test; False: only count them.
        unlabelled: the folder of the unlabelled pictures, if that is another one.

    Raises:
        UserError: the root is missing or has another layout; a class has no image; there is only one class; the
            splits have different classes; an image cannot be decoded.
    """
    root = Path(root)
    refuse_colour(background)
    folders, notes = split_folders(root)
    own, given = folders.pop("unlabelled", None), None if unlabelled is None else Path(unlabelled)
    if own and given:
        raise UserError(f"data.source.unlabelled={given}: '{own}' holds unlabelled pictures, too. Move or rename one.")
    first = folders["train" if "train" in folders else "test"]
    classes = class_folders(first, own)
    parts = {"train": Found(find_pictures(root, ())[0], torch.zeros(0, dtype=torch.int64))}
    for part, folder in folders.items():
        if folder != first:
            refuse_other_classes(first, classes, folder)
        parts[part] = _pictures(folder, classes, part, notes)
    if without := own or given:
        parts["unlabelled"] = _unlabelled(without, notes)
    if check:
        parts = {part: decodable(found, part, broken == "skip", notes) for part, found in parts.items()}
    keys = dict(zip(parts, content_keys([found.files for found in parts.values()]), strict=True))
    labels = {part: None if part == "unlabelled" else found.targets.tolist() for part, found in parts.items()}
    for part, positions in apart(keys, labels, "pictures", drop_duplicates, notes).items():
        parts[part] = parts[part].take(positions)
    rest = parts.pop("unlabelled", None)
    splits = {
        part: Split.whole(EncodedImages(files, size, background), targets) for part, (files, targets) in parts.items()
    }
    if rest is not None:
        (files, targets), count = parts["train"], len(rest.files)
        images = EncodedImages(JoinedPictures(files, rest.files), size, background)
        labelled = torch.arange(len(targets) + count) < len(targets)
        splits["train"] = Split.whole(images, torch.cat([targets, rest.targets]), labelled)
    if "test" not in splits:
        splits["test"], splits["train"] = splits["train"].divided(round(test_fraction * len(parts["train"].targets)))
        notes.append(f"test: {len(splits['test'].indices):,} pictures drawn from all, always the same ones")
    return RawData(root.resolve().name, classes, splits["train"], splits["test"], splits.get("val"), tuple(notes))


def _pictures(folder: Path, classes: tuple[str, ...], part: str, notes: list[str]) -> Found:
    files, counts = find_pictures(folder, classes)
    for name, count in zip(classes, counts, strict=True):
        if not count:
            kinds = ", ".join(sorted(EXTENSIONS))
            raise UserError(f"The class folder '{folder / name}' has no image ({kinds}). Fill or remove it.")
    _note_others(files, part, notes)
    return Found(files, torch.arange(len(classes)).repeat_interleave(torch.tensor(counts)))


def _unlabelled(folder: Path, notes: list[str]) -> Found:
    if not folder.is_dir():
        raise UserError(f"data.source.unlabelled={folder}: there is no such folder.")
    files, (count,) = find_pictures(folder.parent, [folder.name])
    if not count:
        raise UserError(f"The folder '{folder}' of unlabelled pictures has none ({', '.join(sorted(EXTENSIONS))}).")
    _note_others(files, "unlabelled", notes)
    return Found(files, torch.zeros(count, dtype=torch.int64))


def _note_others(files: PictureFiles, part: str, notes: list[str]) -> None:
    if files.others:
        kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in files.others.most_common(SHOWN))
        notes.append(f"{part}: {files.others.total():,} files that are no pictures left out ({kinds})")


def decodable(found: Found, part: str, skip: bool, notes: list[str]) -> Found:
    """The pictures that can be decoded. Raises UserError at the first that cannot, unless such are to be skipped."""
    answers = np.array(remembered(error_in_decoding, found.files.files(), "Checking pictures"))
    broken = np.flatnonzero(answers != "").tolist()
    if broken and not skip:
        path = found.files.path(broken[0])
        more = [f" There are {len(broken) - 1:,} more, such as '{found.files.path(one)}'." for one in broken[1:2]]
        raise UserError("".join([answers[broken[0]].replace(str(path.absolute()), str(path)), *more]))
    if broken:
        named = ", ".join(os.fsdecode(found.files.names[position]) for position in broken[:SHOWN])
        notes.append(f"{part}: {len(broken):,} broken pictures left out ({named}{', …' if broken[SHOWN:] else ''})")
    return found.take(np.flatnonzero(answers == "").tolist())


def error_in_decoding(path: Path) -> str:
    """What is wrong with a picture; empty: nothing."""
    try:
        decode(path, str(path))
    except UserError as error:
        return str(error)
    return ""
