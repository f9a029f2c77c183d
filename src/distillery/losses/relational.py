"""What the losses on relations share: they compare each network's samples with each other."""

from collections.abc import Mapping

import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.losses.signals import Signals
from distillery.losses.term import Pair, Term

EMBEDDING = {"embedding": "embedding"}


class Relational(Term):
    """A loss between the samples of one batch, on pairs of layers [B,...] of any size, summed over the pairs."""

    def build(self, student: Mapping[str, torch.Size], teacher: Mapping[str, torch.Size]) -> None:
        for pair in self.pairs(student, teacher):
            require_features(self.contract.short_name, pair)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss on one pair of layers: a scalar."""
        raise NotImplementedError

    def forward(self, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([self.compare(s, t) for s, t in self.features(student, teacher)]).sum()


def require_features(name: str, pair: Pair) -> None:
    """Raise UserError unless both layers give features of each sample."""
    if len(pair.student) < 2 or len(pair.teacher) < 2:
        raise UserError(
            f"{name} compares one vector a sample, and cannot compare {pair}. "
            "Choose layers with a batch dimension and features."
        )


def require_same_batch(student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError unless both have as many samples."""
    if len(student) != len(teacher):
        raise ValueError(f"student has {len(student)} samples, teacher {len(teacher)}")
