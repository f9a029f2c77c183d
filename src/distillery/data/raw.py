"""What a source of data gives: samples with targets, and which of them are for what."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Some of a set of labelled samples: `indices` are positions in `inputs` and `targets`.

    `inputs` are `Images` (`images.py`), `Texts` (`texts.py`) or, when these have been tokenised, `Tokens`.
    """

    inputs: Any
    targets: Tensor  # int64 [N]: classes, or zeros where there are none; float32 [N]: numbers to regress on
    indices: Tensor  # int64, at most N

    @classmethod
    def whole(cls, inputs: Any, targets: Tensor) -> "Split":
        return cls(inputs, targets, torch.arange(len(targets)))


@dataclass(frozen=True)
class RawData:
    """A data set as its makers split it; without `val` the validation samples are cut from `train`.

    `remarks` are what its user is told of it: how many duplicates were left out, and the like.
    """

    name: str
    classes: tuple[str, ...]  # empty where the samples have none
    train: Split
    test: Split
    val: Split | None = None
    remarks: tuple[str, ...] = ()
