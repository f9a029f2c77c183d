"""CIFAR-10 and CIFAR-100, from the pickles of their "python version"."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.datasets import CIFAR10, CIFAR100

from distillery.core.errors import UserError
from distillery.data.images import TensorImages
from distillery.data.raw import RawData, Split
from distillery.data.sources.download import download


def cifar10(root: str | Path = "data") -> RawData:
    """50,000 + 10,000 colour images of 32×32 pixels in 10 classes (Krizhevsky 2009).

    `root` is the folder `cifar-10-batches-py` or one that holds it; without it, it is downloaded there.

    Raises:
        UserError: a file is missing or damaged, or the download failed.
    """
    folder = _folder(Path(root), "cifar-10-batches-py", "data_batch_1", CIFAR10)
    batches = [f"data_batch_{number}" for number in range(1, 6)]
    classes = _read(folder / "batches.meta")["label_names"]
    return RawData(
        "cifar10",
        tuple(classes),
        train=_split([folder / name for name in batches], "labels"),
        test=_split([folder / "test_batch"], "labels"),
    )


def cifar100(root: str | Path = "data") -> RawData:
    """50,000 + 10,000 colour images of 32×32 pixels in 100 classes, the fine labels (Krizhevsky 2009).

    `root` is the folder `cifar-100-python` or one that holds it; without it, it is downloaded there.

    Raises:
        UserError: a file is missing or damaged, or the download failed.
    """
    folder = _folder(Path(root), "cifar-100-python", "train", CIFAR100)
    classes = _read(folder / "meta")["fine_label_names"]
    return RawData(
        "cifar100",
        tuple(classes),
        train=_split([folder / "train"], "fine_labels"),
        test=_split([folder / "test"], "fine_labels"),
    )


def _folder(root: Path, name: str, first: str, dataset: type) -> Path:
    if root.name == name and (root / first).is_file():
        return root
    if not (root / name / first).is_file():
        download(dataset, root, f"the unpacked folder '{name}'")
    return root / name


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return pickle.load(file, encoding="latin1")
    except FileNotFoundError as error:
        raise UserError(f"'{path}' is missing. Unpack the whole archive again.") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"'{path}' is damaged ({error}). Fetch the archive again.") from error


def _split(paths: list[Path], labels: str) -> Split:
    batches = [_read(path) for path in paths]
    try:
        images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
        targets = torch.tensor([label for batch in batches for label in batch[labels]])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"'{paths[0]}' is not a CIFAR batch with 'data' and '{labels}' ({error}).") from error
    return Split.whole(TensorImages(torch.from_numpy(images)), targets)
