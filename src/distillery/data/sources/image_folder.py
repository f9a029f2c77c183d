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
from distillery.data.images import EncodedImages
from distillery.data.picture_files import PictureFiles, content_keys, find_pictures
from distillery.data.raw_data import RawData, Split
from distillery.data.sources.duplicates import apart
from distillery.data.sources.folder_layout import class_folders, refuse_other_classes, split_folders

SHOWN = 3  # examples in a message


class Found(NamedTuple):
    """The pictures of a split and their classes [N]."""

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
) -> RawData:
    """Images in `root`/{train,val,test}/class/, or in `root`/class/ with `test_fraction` of them for test.

    If a folder has only train and val (as ImageNet has), val becomes the test split: nothing may be selected on the
    images that give the score. The remarks say so, and count what was left out: files that are no pictures, broken
    ones, and duplicates. The index of a sample is its position in the sorted list of the split's remaining files.

    Args:
        size: side of the served squares.
        check: decode every picture before training. The outcome is remembered for files that do not change.
        broken: whether `check` refuses broken files, or leaves them out.
        background: the colour that shows through transparent pixels.
        drop_duplicates: leave out pictures that equal, byte for byte, one of their own split (all of these if their
            classes differ) or of a later one of train, val and test; False: only count them.

    Raises:
        UserError: the root is missing or has another layout; a class has no image; there is only one class; the
            splits have different classes; an image cannot be decoded.
    """
    root = Path(root)
    refuse_colour(background)
    folders, notes = split_folders(root)
    classes = class_folders(folders["train"])
    parts = {}
    for part, folder in folders.items():
        refuse_other_classes(folders["train"], folder)
        parts[part] = _pictures(folder, classes, part, notes)
        if check:
            parts[part] = _decodable(parts[part], part, broken == "skip", notes)
    keys = dict(zip(parts, content_keys([found.files for found in parts.values()]), strict=True))
    labels = {part: found.targets.tolist() for part, found in parts.items()}
    for part, positions in apart(keys, labels, "pictures", drop_duplicates, notes).items():
        parts[part] = parts[part].take(positions)
    splits = {
        part: Split.whole(EncodedImages(files, size, background), targets) for part, (files, targets) in parts.items()
    }
    if "test" not in splits:
        splits["test"], splits["train"] = splits["train"].divided(round(test_fraction * len(parts["train"].targets)))
        notes.append(f"test: {len(splits['test'].indices):,} of the pictures, always the same")
    return RawData(root.resolve().name, classes, splits["train"], splits["test"], splits.get("val"), tuple(notes))


def _pictures(folder: Path, classes: tuple[str, ...], part: str, notes: list[str]) -> Found:
    files, counts = find_pictures(folder, classes)
    for name, count in zip(classes, counts, strict=True):
        if not count:
            kinds = ", ".join(sorted(EXTENSIONS))
            raise UserError(f"The class folder '{folder / name}' has no image ({kinds}). Fill or remove it.")
    if files.others:
        kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in files.others.most_common(SHOWN))
        notes.append(f"{part}: {files.others.total():,} files that are no pictures left out ({kinds})")
    return Found(files, torch.arange(len(classes)).repeat_interleave(torch.tensor(counts)))


def _decodable(found: Found, part: str, skip: bool, notes: list[str]) -> Found:
    answers = np.array(remembered(error_in_decoding, found.files.files(), "Checking pictures"))
    broken = np.flatnonzero(answers != "").tolist()
    if broken and not skip:
        more = [f" There are {len(broken) - 1:,} more, such as '{found.files.path(one)}'." for one in broken[1:2]]
        raise UserError("".join([answers[broken[0]], *more]))
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
