"""What a source of data gives: samples with targets, and which of them are for what."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Some of a set of labelled samples: `indices` are positions in `inputs` and `targets`.

    `inputs` are `Images` (`images.py`), `Texts` or, once these are tokenised, `Tokens` (`tokens.py`).
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


@dataclass(frozen=True)
class Texts:
    """N texts, or N pairs of texts, addressed by their position.

    With `labels`, a text is given as its words, and has a label for each word: for token classification.
    """

    first: Sequence[str] | Sequence[Sequence[str]]
    second: Sequence[str] | None = None
    labels: Sequence[Sequence[int]] | None = None

    def __len__(self) -> int:
        return len(self.first)

    def content(self) -> bytes:
        """What identifies the texts, for the fingerprint."""
        sha = hashlib.sha256()
        for part in (self.first, self.second, self.labels):
            for item in part or ():
                sha.update(repr(item).encode() + b"\n")
        return sha.digest()
