"""Predicted classes of pixels as picture files, in the form in which `data=mask_folder` reads masks."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distillery.core.errors import UserError
from distillery.core.files import atomic_write
from distillery.data.decoding import decode
from distillery.data.images import EncodedImages
from distillery.data.unseen import Unseen


def write_masks(folder: Path, pictures: Unseen, masks: Iterable[NDArray[np.uint8]]) -> None:
    """Write a PNG for each picture into the folder, below which they lie as the pictures do below theirs.

    Its values are the numbers of the classes, shown in PASCAL VOC's colours. Where whole pictures are served as
    squares, it is resized to the size of its picture, to the nearest pixel; otherwise it has the size of the served
    images.

    Args:
        masks: [H,W] of each picture, in their order.

    Raises:
        UserError: two masks would have the same name, or one that of a given picture; before any is made.
    """
    given = [Path(path) for path in pictures.columns["path"]]
    whole = isinstance(pictures.inputs, EncodedImages) and pictures.inputs.squeeze
    for picture, file, mask in zip(given, _files(folder, given), masks, strict=True):
        image = Image.fromarray(mask)
        image.putpalette(_colours().tobytes())
        if whole:
            height, width = decode(picture, str(picture)).shape[1:]
            image = image.resize((width, height), Image.Resampling.NEAREST)
        with atomic_write(file) as unfinished:
            image.save(unfinished, "PNG")


def _files(folder: Path, pictures: list[Path]) -> list[Path]:
    """The file of each picture's mask."""
    paths = [Path(os.path.normpath(picture.absolute())) for picture in pictures]
    root = Path(os.path.commonpath([path.parent for path in paths]))
    found: dict[Path, Path] = {}
    for picture, path in zip(pictures, paths, strict=True):
        file = folder / path.relative_to(root).with_suffix(".png")
        if file in found:
            raise UserError(f"'{found[file]}' and '{picture}' would both have the mask '{file}'. Rename one of them.")
        if file.exists() and any(file.samefile(each) for each in paths):
            raise UserError(f"out={folder}: the mask of '{picture}' would replace the given '{file}'.")
        found[file] = picture
    return [*found]


def _colours() -> NDArray[np.uint8]:
    """The colour of each class, uint8 [256,3]: every third bit of its number, the lowest first, is the highest of red.

    As in the development kit of PASCAL VOC (Everingham et al. 2010); green and blue take the bits between.
    """
    bits = np.arange(256)[:, None, None] >> (3 * np.arange(8)[:, None] + np.arange(3)) & 1  # [256,8,3]
    return (bits << np.arange(7, -1, -1)[:, None]).sum(1).astype(np.uint8)
