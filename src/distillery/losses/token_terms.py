"""The bases of the losses on attention and on tokens."""

from collections.abc import Mapping

import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.losses.layer_terms import LayerTerm, ProjectedTerm
from distillery.losses.signals import Attention, Signals
from distillery.losses.term import Pair


class AttentionTerm(LayerTerm):
    """A loss of pairs of attention layers, summed over the pairs. `layers: auto` finds the layers.

    Every sample has the same weight, however many of its tokens count.
    """

    def checked(self, pair: Pair) -> Pair:
        """Here: the layers must have the same numbers of heads and of tokens. Shapes are the queries', [B,H,L,D]."""
        require_same_length(self.name, pair)
        if pair.student[1] != pair.teacher[1]:
            raise UserError(
                f"{self.name} compares head by head, and cannot compare {pair}: the numbers of heads differ, "
                f"{pair.student[1]} and {pair.teacher[1]}. Choose a student with the same number of heads, or another "
                "loss: minilmv2 has its own relation heads, and vit_attention averages the heads."
            )
        return pair

    def forward(self, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
        pairs = ((student.attention[ours], teacher.attention[theirs]) for ours, theirs in self.taps.items())
        return torch.stack([self.compare(ours, theirs, student.mask) for ours, theirs in pairs]).sum(0)

    def compare(self, student: Attention, teacher: Attention, mask: Tensor | None) -> Tensor:
        """The loss of one pair of layers, [B]."""
        raise NotImplementedError


class TokenTerm(ProjectedTerm):
    """`function` of pairs of layers that give tokens [B,L,D], summed; each student layer is projected first.

    Every sample has the same weight, however many of its tokens count.
    """

    def checked(self, pair: Pair) -> Pair:
        if len(pair.student) != 3 or len(pair.teacher) != 3:
            raise UserError(
                f"{self.name} compares tokens [B,L,D], and cannot compare {pair}. Choose the blocks of transformers, "
                "or loss/feature=[hint], which also takes maps and vectors."
            )
        require_same_length(self.name, pair)
        return pair

    def forward(self, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([self.loss(s, t, student.mask) for s, t in self.features(student, teacher)]).sum(0)


def require_same_length(name: str, pair: Pair) -> None:
    """Raise UserError unless the two layers, [B,L,D] or [B,H,L,D], have the same number of tokens."""
    student, teacher = pair.student[-2], pair.teacher[-2]
    if student != teacher:
        raise UserError(
            f"{name} compares token by token, and cannot compare {pair}: the numbers of tokens differ, {student} and "
            f"{teacher}. Give both networks the same patches or the same tokenizer. For images, hint, vit_attention "
            "and class_attention pool the larger grid."
        )
