"""Your own images with masks: a folder `images` and a folder `masks`."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Le

from distillery.core.errors import UserError, did_you_mean_beside
from distillery.data.augmentation import LEFT_OUT
from distillery.data.decoding import decode, refuse_colour
from distillery.data.file_memory import remembered
from distillery.data.images import EncodedImages, JoinedPictures
from distillery.data.masks import MaskedImages, MaskFiles, read_mask
from distillery.data.picture_files import PictureFiles, content_keys, find_pictures
from distillery.data.raw_data import RawData, Split
from distillery.data.sources.duplicates import apart
from distillery.data.sources.folder_layout import folders_in, split_of

LAYOUT = "<root>/{images,masks}, <root>/{train,val,test}/{images,masks} or <root>/{images,masks}/{train,val,test}"
SPELLINGS = {
    "images": ("images", "image", "imgs", "img", "jpegimages"),
    "masks": ("masks", "mask", "annotations", "labels", "segmentationclass"),
}
PARTS = ("train", "val", "test")
SIZE = re.compile(r"\d+x\d+( \d+)*")
Value = Annotated[int, Ge(0), Le(255)]


class Found(NamedTuple):
    """The pictures of a split and their masks, in the same order; of unlabelled pictures there are none."""

    images: PictureFiles
    masks: PictureFiles

    def take(self, positions: Sequence[int]) -> "Found":
        return Found(*(files.take(positions) if len(files) else files for files in self))


def mask_folder(
    root: str | Path,
    size: int = 224,
    classes: Sequence[str] | None = None,
    values: Sequence[Value] | None = None,
    ignore: Value | None = LEFT_OUT,
    test_fraction: float = 0.2,
    background: str = "white",
    drop_duplicates: bool = True,
) -> RawData:
    """Images and masks of the same names in the folders `images` and `masks`, in the layout `LAYOUT`.

    A mask has one channel of 8 bits, or a palette; its values are the numbers of the classes. Without a folder test,
    val is the test split; without both, a share of all images is. Pictures in `root`/unlabelled/ have no mask. Every
    file is read once before training; what was found is remembered for files that do not change.

    Args:
        size: side of the served squares, into which whole images are squeezed, and their masks with them.
        classes: the names of the classes; None: their values.
        values: the value of each class in the masks; None: all from 0 to the largest but `ignore`.
        ignore: the value of pixels that count nowhere; None: there are none.
        test_fraction: the share of the test split, if the folder has none.
        background: the colour that shows through transparent pixels.
        drop_duplicates: see `image_folder`; of equal pictures with different masks, none is kept.

    Raises:
        UserError: the root is missing or has another layout; an image without a mask or of another size, or the
            reverse; a file that cannot be read; a value that is no class.
    """
    root = Path(root)
    refuse_colour(background)
    folders, notes = _split_folders(root)
    parts = {part: _paired(*pair) for part, pair in folders.items()}
    if (root / "unlabelled").is_dir():
        parts["unlabelled"] = Found(find_pictures(root, ["unlabelled"])[0], find_pictures(root, ())[0])
    own = _values({part: _described(found) for part, found in parts.items()}, values, ignore, classes)
    table = np.full(256, LEFT_OUT, dtype=np.uint8)
    table[own] = np.arange(len(own))
    pictures, masks = (content_keys([found[place] for found in parts.values()]) for place in (0, 1))
    labels = {part: keys or None for part, keys in zip(parts, masks, strict=True)}
    kept = apart(dict(zip(parts, pictures, strict=True)), labels, "pictures", drop_duplicates, notes)
    parts = {part: found.take(kept[part]) for part, found in parts.items()}
    rest = parts.pop("unlabelled", None)
    splits: dict[str, Split] = {}
    for part, (images, files) in parts.items():
        more = rest if part == "train" else None
        served = EncodedImages(
            images if more is None else JoinedPictures(images, more.images), size, background, squeeze=True
        )
        labelled = torch.arange(len(served)) < len(files)
        targets = torch.zeros(len(served), dtype=torch.int64)
        splits[part] = Split.whole(MaskedImages(served, MaskFiles(files, table)), targets, labelled)
    if "test" not in splits:
        number = max(1, round(test_fraction * len(parts["train"].masks)))
        splits["test"], splits["train"] = splits["train"].divided(number)
        notes.append(f"test: {number:,} pictures drawn from all, always the same ones")
    names = tuple(map(str, own if classes is None else classes))
    return RawData(root.resolve().name, names, splits["train"], splits["test"], splits.get("val"), tuple(notes))


def _split_folders(root: Path) -> tuple[dict[str, tuple[Path, Path]], list[str]]:
    """The folders of images and of masks of each split, and remarks."""
    if not root.is_dir():
        raise UserError(
            f"The folder '{root}' does not exist.{did_you_mean_beside(root, Path.is_dir)} Expected: {LAYOUT}."
        )
    if pair := _pair(root):
        inner = [{split_of(folder.name): folder for folder in folders_in(each)} for each in pair]
        both = [part for part in PARTS if all(part in each for each in inner)]
        parts = {part: (inner[0][part], inner[1][part]) for part in both} if "train" in both else {"train": pair}
    else:
        found = {split_of(folder.name): _pair(folder) for folder in folders_in(root)}
        parts = {part: own for part in PARTS if (own := found.get(part))}
    if "train" not in parts:
        raise UserError(f"'{root}' has no images with masks to train on. Expected: {LAYOUT}.")
    if "val" in parts and "test" not in parts:
        parts["test"] = parts.pop("val")
        return parts, ["no test folder: val is the test split, validation is cut from train"]
    return parts, []


def _pair(folder: Path) -> tuple[Path, Path] | None:
    """The folders of images and of masks in a folder, if both are there."""
    named = {re.sub(r"[^a-z]", "", each.name.lower()): each for each in folders_in(folder)}
    found = [next((named[name] for name in names if name in named), None) for names in SPELLINGS.values()]
    return (found[0], found[1]) if found[0] and found[1] else None


def _paired(images: Path, masks: Path) -> Found:
    """The pictures of both folders, by their names without the suffix."""
    files = [find_pictures(folder.parent, [folder.name])[0] for folder in (images, masks)]
    names = [[name.partition(b"/")[2].rpartition(b".")[0] for name in each.names.tolist()] for each in files]
    for folder, own, others, other in ((images, names[0], masks, names[1]), (masks, names[1], images, names[0])):
        if lonely := sorted(set(own) - set(other)):
            raise UserError(
                f"{len(lonely):,} of {len(own):,} files in '{folder}' have no file of the same name in '{others}', for "
                f"instance {lonely[0].decode(errors='replace')!r}. Pictures without a mask belong in <root>/unlabelled."
            )
        if len(set(own)) < len(own):
            raise UserError(f"'{folder}' has two files of the same name, with different suffixes. Remove one.")
    if not names[0]:
        raise UserError(f"'{images}' has no pictures.")
    place = {name: position for position, name in enumerate(names[1])}
    return Found(files[0], files[1].take([place[name] for name in names[0]]))


def _described(found: Found) -> list[str]:
    """What `described_mask` says of each mask, once all files have been found to be readable and of equal sizes."""
    told = remembered(described_picture, found.images.files(), "Checking pictures")
    masks = remembered(described_mask, found.masks.files(), "Checking masks")
    if broken := next((each for each in (*told, *masks) if not SIZE.fullmatch(each)), None):
        raise UserError(broken)
    for position, (image, mask) in enumerate(zip(told, masks, strict=False)):
        if image != (size := mask.partition(" ")[0]):
            raise UserError(
                f"'{found.images.path(position)}' has {image} pixels, and its mask {size}. Masks must have the size of "
                "their images, once rotated by their EXIF data."
            )
    return masks


def described_picture(path: Path) -> str:
    """Width and height of a picture, or what is wrong with it."""
    try:
        _, height, width = decode(path, str(path)).shape
    except UserError as error:
        return str(error)
    return f"{width}x{height}"


def described_mask(path: Path) -> str:
    """Width and height of a mask and its different values, or what is wrong with it."""
    try:
        values = read_mask(path)
    except UserError as error:
        return str(error)
    return " ".join([f"{values.shape[1]}x{values.shape[0]}", *map(str, np.unique(values).tolist())])


def _values(
    described: Mapping[str, Sequence[str]],
    values: Sequence[int] | None,
    ignore: int | None,
    classes: Sequence[str] | None,
) -> list[int]:
    """The value of each class in the masks."""
    found = {int(value) for masks in described.values() for mask in masks for value in mask.split()[1:]}
    if values is None:
        if found == {0, ignore}:
            raise UserError(
                f"The masks have only the values 0 and {ignore}, and {ignore} means that a pixel counts nowhere "
                f"(data.source.ignore). If it is the foreground: data.source.values=[0,{ignore}]."
            )
        most = max(found - {ignore}, default=0) if classes is None else len(classes)
        own = [value for value in range(most + 1) if value != ignore]
        own = own if classes is None else own[: len(classes)]
    else:
        own = list(values)
    if classes is not None and len(classes) != len(own):
        raise UserError(f"data.source.classes has {len(classes)} names, and data.source.values {len(own)} values.")
    if len(own) < 2 or len(set(own)) < len(own):
        raise UserError(
            f"The masks have the classes {own}: at least two are needed, each once. Set data.source.values."
        )
    if unknown := sorted(found - {*own, ignore}):
        raise UserError(
            f"The masks have the value {unknown[0]}, which is none of the {len(own)} classes ({own[0]} to {own[-1]}). "
            "See data.source.classes, values and ignore."
        )
    return own
