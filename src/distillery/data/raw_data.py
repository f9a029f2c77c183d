"""What a source returns: samples with targets, and the split each belongs to."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from distillery.data.splits import SPLIT_SEED, stratified


@dataclass(frozen=True)
class Split:
    """Part of a set of samples: `indices` are positions in `inputs` and `targets`.

    `inputs` are `Images` (`images.py`), `Texts` or, once these are tokenised, `Tokens` (`tokens.py`).
    """

    inputs: Any
    targets: Tensor  # classes int64 [N], zeros if there are none; or float32 [N], the targets of a regression
    indices: Tensor  # int64, at most N

    @classmethod
    def whole(cls, inputs: Any, targets: Tensor) -> "Split":
        return cls(inputs, targets, torch.arange(len(targets)))

    def divided(self, size: int, seed: int = SPLIT_SEED) -> tuple["Split", "Split"]:
        """`size` of the samples, drawn by class, and the rest. Raises UserError: see `stratified`."""
        drawn, rest = stratified(self.targets, self.indices, size, seed)
        return replace(self, indices=drawn), replace(self, indices=rest)


@dataclass(frozen=True)
class RawData:
    """A data set with its own splits. Without `val`, the validation samples are cut from `train`.

    `remarks` are shown to the user: for instance, how many duplicates were left out.
    """

    name: str
    classes: tuple[str, ...]  # empty if the samples have none
    train: Split
    test: Split
    val: Split | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Texts:
    """N texts, or N pairs of texts, addressed by their position.

    With `labels` (token classification), each text is a list of words, with one label per word.
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
