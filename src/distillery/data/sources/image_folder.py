"""Your own images: one folder per class."""

import logging
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from distillery.core.errors import UserError, did_you_mean
from distillery.data.images import FileImages
from distillery.data.raw_data import RawData, Split

LAYOUT = "<root>/{train,val,test}/<class>/*.jpg (val is optional) or <root>/<class>/*.jpg"
log = logging.getLogger(__name__)


def image_folder(root: str | Path, size: int = 224, test_fraction: float = 0.2, check: bool = True) -> RawData:
    """Images in `root`/{train,val,test}/class/, or in `root`/class/ with `test_fraction` of them for test.

    If a folder has only train and val (as ImageNet has), val becomes the test split: nothing may be selected on the
    images that give the score. Both choices are logged. `size` is the side of the served squares. The index of a
    sample is its position in the sorted list of the split's files.

    Raises:
        UserError: the root is missing or has another layout; a class has no image; there is only one class; the
            splits have different classes; an image cannot be decoded (with `check`, before training).
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"The image folder '{root}' does not exist. Expected: {LAYOUT}.")
    if not (root / "train").is_dir():
        return _single(root, size, test_fraction, check)
    parts = {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()}
    if "test" not in parts:
        if "val" not in parts:
            raise UserError(f"'{root}' has 'train' but neither 'val' nor 'test'. Expected: {LAYOUT}.")
        log.info("'%s' has no test folder: val is the test split, and validation is cut from train.", root)
        parts["test"] = parts.pop("val")
    classes = _classes(parts["train"])
    for part in parts.values():
        _same_classes(parts["train"], classes, part)
    splits = {name: Split.whole(*_scan(part, classes, size, check)) for name, part in parts.items()}
    return RawData(root.resolve().name, classes, splits["train"], splits["test"], splits.get("val"))


def _single(root: Path, size: int, test_fraction: float, check: bool) -> RawData:
    classes = _classes(root)
    images, targets = _scan(root, classes, size, check)
    tested, total = round(test_fraction * len(targets)), len(targets)
    test, train = Split.whole(images, targets).divided(tested)
    log.info("'%s' has no split: %d of its %d images, always the same, are the test split.", root, tested, total)
    return RawData(root.resolve().name, classes, train, test)


def _classes(root: Path) -> tuple[str, ...]:
    classes = tuple(sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if len(classes) < 2:
        found = f"only the class folder '{classes[0]}'" if classes else "no class folder"
        raise UserError(f"'{root}' has {found}; at least two are needed. Expected: {LAYOUT}.")
    return classes


def _same_classes(train: Path, classes: tuple[str, ...], other: Path) -> None:
    found = _classes(other)
    if missing := sorted(set(classes) - set(found)):
        raise UserError(f"'{other}' lacks classes of '{train}': {', '.join(missing)}.")
    if extra := sorted(set(found) - set(classes)):
        hint = did_you_mean(extra[0], classes)
        raise UserError(f"'{other}' has classes that '{train}' lacks: {', '.join(extra)}.{hint}")


def _scan(root: Path, classes: tuple[str, ...], size: int, check: bool) -> tuple[FileImages, Tensor]:
    paths: list[Path] = []
    targets: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(path for path in (root / name).rglob("*") if path.suffix.lower() in IMG_EXTENSIONS)
        if not found:
            kinds = ", ".join(IMG_EXTENSIONS)
            raise UserError(f"The class folder '{root / name}' has no image ({kinds}). Fill or remove it.")
        paths += found
        targets += [label] * len(found)
    images = FileImages(paths, root, size)
    if check:
        rank_zero_only(images.check)()
    return images, torch.tensor(targets)
