"""The terms on attention and on tokens: what they check, and how they go through their pairs of layers."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.losses.alignment import align
from distillery.losses.projectors import check_projector, make_projector
from distillery.losses.signals import Attention, Signals
from distillery.losses.term import Layers, Pair, Term


class AttentionTerm(Term):
    """A loss of pairs of attention layers, summed. `layers: auto` finds them.

    A sample weighs the same however many of its tokens count.
    """

    def __init__(self, weight: float = 1.0, teacher: str = "main", layers: Layers = "auto") -> None:
        super().__init__(weight, teacher, layers)

    def build(self, student: Mapping[str, torch.Size], teacher: Mapping[str, torch.Size]) -> None:
        for pair in self.pairs(student, teacher):
            self.check(pair)

    def check(self, pair: Pair) -> None:
        """Raise UserError unless the loss can compare these layers: here, as many heads and as many tokens.

        The shapes are those of the queries, [B,H,L,D].
        """
        require_same_length(type(self).__name__, pair)
        if pair.student[1] != pair.teacher[1]:
            raise UserError(
                f"{type(self).__name__} compares head by head, and cannot compare {pair}: the numbers of heads differ, "
                f"{pair.student[1]} and {pair.teacher[1]}. Choose a student with as many heads, or another loss: "
                "minilmv2 has relation heads of its own, vit_attention averages the heads."
            )

    def forward(self, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
        pairs = self.attentions(student, teacher)
        return torch.stack([self.compare(ours, theirs, student.mask) for ours, theirs in pairs]).sum(0)

    def compare(self, student: Attention, teacher: Attention, mask: Tensor | None) -> Tensor:
        """The loss of one pair of layers, [B]."""
        raise NotImplementedError


class TokenTerm(Term):
    """A loss of pairs of layers that give tokens, summed, each through a projector of its own.

    A sample weighs the same however many of its tokens count.
    """

    def __init__(
        self, weight: float = 1.0, teacher: str = "main", layers: Layers = "auto", projector: str | None = "auto"
    ) -> None:
        check_projector(projector)
        super().__init__(weight, teacher, layers, projector)

    def build(self, student: Mapping[str, torch.Size], teacher: Mapping[str, torch.Size]) -> None:
        pairs = [self.checked(pair) for pair in self.pairs(student, teacher)]
        self.projectors = nn.ModuleList(make_projector(self.projector, pair) for pair in pairs)

    def checked(self, pair: Pair) -> Pair:
        """The pair as the projector sees it, or UserError unless both are tokens [B,L,D], as many of them."""
        if len(pair.student) != 3 or len(pair.teacher) != 3:
            raise UserError(
                f"{type(self).__name__} compares tokens [B,L,D], and cannot compare {pair}. Choose the blocks of "
                "transformers, or loss/feature=[hint], which also takes maps and vectors."
            )
        require_same_length(type(self).__name__, pair)
        return pair

    def forward(self, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
        pairs = zip(self.projectors, self.features(student, teacher), strict=True)
        return torch.stack(
            [self.compare(*align(project(self.part(s)), self.part(t)), student.mask) for project, (s, t) in pairs]
        ).sum(0)

    def part(self, hidden: Tensor) -> Tensor:
        """What of a layer is projected and compared."""
        return hidden

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """The loss of one pair of layers, [B]."""
        raise NotImplementedError


def require_same_length(name: str, pair: Pair) -> None:
    """Raise UserError unless the two layers, [B,L,D] or [B,H,L,D], have as many tokens."""
    student, teacher = pair.student[-2], pair.teacher[-2]
    if student != teacher:
        raise UserError(
            f"{name} compares token by token, and cannot compare {pair}: the numbers of tokens differ, {student} and "
            f"{teacher}. Give both networks the same patches or the same tokenizer. Of images, hint, vit_attention and "
            "class_attention pool the larger grid."
        )
