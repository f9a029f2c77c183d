"""What a source of data gives: images with targets, and which of them are for what."""

from dataclasses import dataclass

import torch
from torch import Tensor

from distillery.data.images import Images


@dataclass(frozen=True)
class Split:
    """Some of a set of labelled images: `indices` are positions in `images` and `targets`."""

    images: Images
    targets: Tensor  # int64 [N]
    indices: Tensor  # int64, at most N

    @classmethod
    def whole(cls, images: Images, targets: Tensor) -> "Split":
        return cls(images, targets, torch.arange(len(targets)))


@dataclass(frozen=True)
class RawData:
    """A data set as its makers split it; without `val` the validation images are cut from `train`."""

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    val: Split | None = None
