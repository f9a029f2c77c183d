"""Losses between one head and another, where a network has a second one for what the teacher says."""

from collections.abc import Iterable

from distillery.core.errors import UserError
from distillery.losses.term import Pair

HEADS = {"distillation_logits": "head"}  # the student's second head learns from the teacher's only one


def require_same_classes(pairs: Iterable[Pair]) -> None:
    """Raise UserError unless both layers of each pair give logits [B,C] of the same classes."""
    for pair in pairs:
        if len(pair.student) != 2 or pair.student != pair.teacher:
            raise UserError(f"Cannot compare {pair}: both must be logits [B,C] of the same classes.")
