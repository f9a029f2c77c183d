"""CIFAR-10 and CIFAR-100, from the files of their "python version"."""

from pathlib import Path
from typing import Any

import torch
from torchvision.datasets import CIFAR10, CIFAR100

from distillery.core.errors import UserError
from distillery.data.images import TensorImages
from distillery.data.raw_data import RawData, Split
from distillery.data.sources.download import download


def cifar10(root: str | Path = "data") -> RawData:
    """50,000 + 10,000 color images of 32×32 pixels in 10 classes (Krizhevsky 2009).

    `root` is the folder `cifar-10-batches-py` or the one that contains it. If it is missing, it is downloaded there.

    Raises:
        UserError: a file is missing or damaged, or the download failed.
    """
    return _data("cifar10", CIFAR10, Path(root))


def cifar100(root: str | Path = "data") -> RawData:
    """50,000 + 10,000 color images of 32×32 pixels in 100 classes, the fine labels (Krizhevsky 2009).

    `root` is the folder `cifar-100-python` or the one that contains it. If it is missing, it is downloaded there.

    Raises:
        UserError: a file is missing or damaged, or the download failed.
    """
    return _data("cifar100", CIFAR100, Path(root))


def _data(name: str, dataset: type[CIFAR10], root: Path) -> RawData:
    folder = dataset.base_folder
    if root.name == folder and root.is_dir():
        root = root.parent
    if not (root / folder).is_dir():
        download(dataset, root, f"the unpacked folder '{folder}'")

    class Unhashed(dataset):
        """Reads subsets and repacked copies as well: torchvision accepts only files with the original MD5 sums."""

        meta = dataset.meta | {"md5": None}

        def _check_integrity(self) -> bool:
            return True

    try:
        train, test = Unhashed(root, train=True), Unhashed(root, train=False)
    except FileNotFoundError as error:
        raise UserError(f"'{error.filename}' is missing. Unpack the whole archive again.") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(
            f"A file in '{root / folder}' is damaged or of another format ({error!r}). Unpack the archive again."
        ) from error
    return RawData(name, tuple(train.classes), train=_split(train), test=_split(test))


def _split(dataset: Any) -> Split:
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    return Split.whole(TensorImages(images), torch.tensor(dataset.targets))
