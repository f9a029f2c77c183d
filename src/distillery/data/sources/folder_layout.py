"""Which folders of a folder of pictures are splits, and which are classes."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from distillery.core.errors import UserError, did_you_mean, did_you_mean_beside
from distillery.data.decoding import EXTENSIONS
from distillery.data.picture_files import hidden

LAYOUT = "<root>/{train,val,test}/<class>/*.jpg (val is optional) or <root>/<class>/*.jpg, and <root>/unlabelled/*.jpg"
SPELLINGS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev"),
    "test": ("test", "testing", "tst"),
    "unlabelled": ("unlabelled", "unlabeled"),
}
SPLITS = {spelling: split for split, spellings in SPELLINGS.items() for spelling in spellings}
ADDED = re.compile(r"(set|data|images|imgs|split)$")  # to the name of a split: `train_set`, `TestImages`


def split_folders(root: Path) -> tuple[dict[str, Path], list[str]]:
    """The folders of the splits train, val and test, and of `unlabelled` pictures, in any usual spelling, and remarks.

    A folder without splits is train itself. If there are only train and val, val is test. Beside unlabelled pictures
    train may be missing.

    Raises:
        UserError: the root is missing, two folders are the same split, train is alone, or the folders look like splits
            with names of their own.
    """
    if not root.is_dir():
        near = did_you_mean_beside(root, Path.is_dir)
        raise UserError(f"The image folder '{root}' does not exist.{near} Expected: {LAYOUT}.")
    named: dict[str, list[Path]] = {}
    for folder in folders_in(root):
        named.setdefault(split_of(folder.name), []).append(folder)
    known = "train" if "train" in named or "unlabelled" not in named else "test"
    if known not in named or any(map(_holds_pictures, named[known])):
        _refuse_unnamed(root)
        parts = {"train": root}
        if unlabelled := named.get("unlabelled"):
            parts["unlabelled"] = unlabelled[0]
        return parts, []
    ignored = [folder.name for folder in named.pop("", [])]
    for split, folders in named.items():
        if len(folders) > 1:
            raise UserError(
                f"'{root}': {' and '.join(folder.name for folder in folders)} are both the {split} split. Rename one."
            )
    parts = {split: folders[0] for split, folders in named.items()}
    notes = [f"folders that are no split were ignored: {', '.join(ignored)}"] if ignored else []
    if "test" not in parts:
        if "val" not in parts:
            raise UserError(f"'{root}' has '{parts['train'].name}' but neither 'val' nor 'test'. Expected: {LAYOUT}.")
        notes.append("no test folder: val is the test split, validation is cut from train")
        parts["test"] = parts.pop("val")
    return parts, notes


def class_folders(root: Path, unlabelled: Path | None = None) -> tuple[str, ...]:
    """The names of the class folders, sorted; `unlabelled` is none of them.

    Raises:
        UserError: there are fewer than two.
    """
    classes = tuple(folder.name for folder in folders_in(root) if folder != unlabelled)
    if len(classes) < 2:
        found = f"only the class folder '{classes[0]}'" if classes else "no class folder"
        inner = f" Or is it data.root={root / classes[0]}?" if classes and _holds_classes(root / classes[0]) else ""
        raise UserError(f"'{root}' has {found}; at least two are needed. Expected: {LAYOUT}.{inner}")
    return classes


def refuse_other_classes(train: Path, classes: Sequence[str], other: Path) -> None:
    """Refuse a split whose class folders are not the `classes` of train."""
    found = class_folders(other)
    if missing := sorted(set(classes) - set(found)):
        raise UserError(f"'{other}' lacks classes of '{train}': {', '.join(missing)}.")
    if extra := sorted(set(found) - set(classes)):
        hint = did_you_mean(extra[0], classes)
        raise UserError(f"'{other}' has classes that '{train}' lacks: {', '.join(extra)}.{hint}")


def _refuse_unnamed(root: Path) -> None:
    """Refuse folders that all hold the same folders, and no pictures: splits, which would be taken for classes."""
    folders = folders_in(root)
    if len(folders) < 2 or not all(map(_holds_classes, folders)):
        return
    inside = {tuple(folder.name for folder in folders_in(each)) for each in folders}
    if len(inside) == 1 and len(next(iter(inside))) > 1:
        names = ", ".join(folder.name for folder in folders)
        raise UserError(
            f"'{root}': the folders {names} hold the same folders each. If they are splits, name them train, val and "
            f"test; if one of them is all that you want, set data.root={folders[0]}."
        )


def split_of(name: str) -> str:
    """The split that a folder's name stands for; empty: none."""
    return SPLITS.get(ADDED.sub("", re.sub(r"[^a-z]", "", name.lower())), "")


def folders_in(root: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones."""
    with os.scandir(root) as entries:  # a class may have a million files: it asks the disk for none of them
        return sorted(Path(entry.path) for entry in entries if entry.is_dir() and not hidden(entry.name))


def _holds_classes(folder: Path) -> bool:
    """Whether a folder holds folders, and no picture beside them."""
    return bool(folders_in(folder)) and not _holds_pictures(folder)


def _holds_pictures(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(Path(entry.name).suffix.lower() in EXTENSIONS for entry in entries if not hidden(entry.name))
