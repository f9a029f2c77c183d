"""The bases of the losses on pairs of layers: as they are, behind projectors, and between the samples of a batch."""

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.losses.alignment import align, align_maps, as_map, channels
from distillery.losses.projectors import aligned, make_projector, run
from distillery.losses.signals import Signals
from distillery.losses.term import Layers, Pair, Term

EMBEDDING = {"embedding": "embedding"}  # the pooled features before each head


class LayerTerm(Term):
    """`function` of each pair of layers, summed over the pairs."""

    one_position: ClassVar[str] = ""  # why this loss cannot compare maps of a single position, if it cannot

    layers: Layers | None = "auto"

    def build(self, student: Mapping[str, torch.Size], teacher: Mapping[str, torch.Size]) -> None:
        for pair in self.pairs(student, teacher):
            self.checked(pair)

    def checked(self, pair: Pair) -> Pair:
        """The pair with the shapes that are compared.

        Raises:
            UserError: this loss cannot compare these layers.
        """
        if self.one_position:
            require_positions(self.name, pair, self.one_position)
        return pair

    def forward(self, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([self.loss(s, t) for s, t in self.features(student, teacher)]).sum(0)


class ProjectedTerm(LayerTerm):
    """`function` of each pair of layers, the student's behind a projector of its own, summed over the pairs.

    The features are aligned first (`align`); if the contract needs maps, tokens become maps before that.
    """

    projector: str | None = "auto"

    def build(self, student: Mapping[str, torch.Size], teacher: Mapping[str, torch.Size]) -> None:
        pairs = [self.checked(pair) for pair in self.pairs(student, teacher)]
        self.projectors = nn.ModuleList(map(self.make_projector, pairs))

    def checked(self, pair: Pair) -> Pair:
        if self.contract.needs == "maps":
            aligned(pair, align_maps)
        return super().checked(pair)

    def make_projector(self, pair: Pair) -> nn.Module:
        """The adapter of one pair of layers."""
        return make_projector(self.projector, pair)

    def width(self, pair: Pair) -> int:
        """The channels that are compared: the teacher's or, with projector=none, those of the narrower layer."""
        return channels(aligned(pair)[1] if self.projector == "none" else pair.teacher)

    def features(self, student: Signals, teacher: Signals) -> Iterator[tuple[Tensor, Tensor]]:
        """The projected student features and the teacher features of each pair, aligned."""
        for project, (s, t) in zip(self.projectors, super().features(student, teacher), strict=True):
            projected = run(project, s)
            yield align(as_map(projected), as_map(t)) if self.contract.needs == "maps" else align(projected, t)


class RelationTerm(LayerTerm):
    """A loss between the samples of one batch, on pairs of layers [B, ...] of any size, summed over the pairs."""

    default_layers = EMBEDDING

    layers: Layers | None = None
    gather: bool = False

    def checked(self, pair: Pair) -> Pair:
        require_features(self.name, pair)
        return pair


def require_features(name: str, pair: Pair) -> None:
    """Raise UserError unless both layers give features for each sample."""
    if len(pair.student) < 2 or len(pair.teacher) < 2:
        raise UserError(
            f"{name} compares one vector per sample, and cannot compare {pair}. "
            "Choose layers with a batch dimension and features."
        )


def require_positions(name: str, pair: Pair, reason: str, other: str = "") -> None:
    """Raise UserError unless both layers are maps of several positions, or tokens that become such maps.

    The message gives the `reason`, and any `other` remedy beside earlier layers.
    """
    student, _ = aligned(pair, align_maps)
    if student[2:] == (1, 1):
        raise UserError(f"{name} cannot compare {pair}: {reason}. Choose earlier layers, with a larger map{other}.")


def require_same_batch(student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError unless both have the same number of samples."""
    if len(student) != len(teacher):
        raise ValueError(f"student has {len(student)} samples, teacher {len(teacher)}")
