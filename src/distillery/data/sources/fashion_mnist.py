"""Fashion-MNIST, from any folder with its four files."""

import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor
from torchvision.datasets import FashionMNIST
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.datasets.utils import extract_archive

from distillery.core.errors import UserError
from distillery.data.images import TensorImages
from distillery.data.masks import MaskedImages, TensorMasks
from distillery.data.raw_data import RawData, Split
from distillery.data.sources.download import download

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
# What torchvision and gzip raise for a file that is damaged or of another format.
DAMAGED = (OSError, EOFError, zlib.error, AssertionError, IndexError, KeyError, TypeError, ValueError, RuntimeError)


def fashion_mnist(root: str | Path = "data") -> RawData:
    """60,000 + 10,000 grayscale images of 28×28 pixels in 10 classes (Xiao, Rasul & Vollgraf 2017).

    The files, gzipped or not, are looked for in `root`, in `root`/FashionMNIST/raw and where the Debian package puts
    them. If they are in none of these, they are downloaded to `root`.

    Raises:
        UserError: a file is missing, damaged or of another format, or the download failed.
    """
    nested = Path(root) / "FashionMNIST" / "raw"
    places = [Path(root), nested, DEBIAN]
    folder = next((place for place in places if any(place.glob("train-images-idx3-ubyte*"))), None)
    if folder is None:
        download(FashionMNIST, Path(root), "the four files of Fashion-MNIST (gzipped or not)")
        folder = nested
    return RawData(
        "fashion_mnist", tuple(FashionMNIST.classes), train=_split(folder, "train"), test=_split(folder, "t10k")
    )


def fashion_mnist_masks(root: str | Path = "data", threshold: Annotated[int, Ge(1), Le(255)] = 16) -> RawData:
    """Fashion-MNIST with a class for each pixel: 0 for the background, and at the garment its class, 1 to 10.

    A pixel belongs to the garment if its value, from 0 to 255, is at least `threshold`. Subsets are drawn by garment.

    Raises:
        UserError: see `fashion_mnist`.
    """
    raw = fashion_mnist(root)
    train, test = (
        replace(split, inputs=MaskedImages(split.inputs, _masks(split, threshold))) for split in (raw.train, raw.test)
    )
    return RawData("fashion_mnist_masks", ("background", *raw.classes), train, test)


def _masks(split: Split, threshold: int) -> TensorMasks:
    foreground = split.inputs.values[:, 0] >= threshold
    return TensorMasks(torch.where(foreground, split.targets[:, None, None] + 1, 0).to(torch.uint8))


def _split(folder: Path, part: str) -> Split:
    images = _read(folder / f"{part}-images-idx3-ubyte", read_image_file)
    labels = _read(folder / f"{part}-labels-idx1-ubyte", read_label_file)
    if len(images) != len(labels):
        raise UserError(f"'{folder}' has {len(images)} {part} images, but {len(labels)} labels. Fetch the files again.")
    return Split.whole(TensorImages(images[:, None]), labels)


def _read(path: Path, read: Callable[[str], Tensor]) -> Tensor:
    """One file, through torchvision, which reads only unpacked ones."""
    if not path.is_file() and not (packed := path.with_name(f"{path.name}.gz")).is_file():
        raise UserError(f"'{path}' is missing, and so is '{packed.name}'. Fetch the file, or set data.root.")
    try:
        with TemporaryDirectory() as unpacked:
            return read(str(path if path.is_file() else extract_archive(packed, unpacked)))
    except DAMAGED as error:
        raise UserError(f"'{path}' is damaged or of another format ({error!r}). Fetch the file again.") from error
