"""Trainable adapters from the student's features to the teacher's width; not part of the exported student."""

import torch
from torch import nn

from distillery.errors import UserError, did_you_mean
from distillery.losses.term import Pair

KINDS = ("auto", "conv", "linear")


def check_projector(kind: str | None) -> None:
    """Raise UserError unless `kind` is a projector's name or None."""
    if kind is not None and kind not in KINDS:
        raise UserError(f"There is no projector {kind!r}.{did_you_mean(kind, KINDS)}")


def make_projector(kind: str | None, pair: Pair) -> nn.Module:
    """The adapter that gives the student's features the teacher's number of channels.

    Args:
        kind: 'conv' (1×1, for maps [B,C,H,W]), 'linear' (for vectors [B,D] and tokens [B,L,D]), 'auto' (the
            one that fits the features), or None (no adapter: the widths must agree).
        pair: the two layers and their shapes.

    Raises:
        UserError: this kind cannot join these shapes.
    """
    student, teacher = pair.student, pair.teacher
    if len(student) != len(teacher) or len(student) not in (2, 3, 4):
        raise UserError(
            f"Cannot compare {pair}: both must be maps [B,C,H,W], both tokens [B,L,D] or both vectors [B,D]. "
            "Choose layers of the same kind."
        )
    if len(student) == 3 and student[1] != teacher[1]:
        raise UserError(
            f"Cannot compare {pair}: the numbers of tokens differ, {student[1]} and {teacher[1]}. "
            "Choose layers with as many tokens."
        )
    fitting = "conv" if len(student) == 4 else "linear"
    width_in, width_out = _width(student), _width(teacher)
    if kind is None:
        if width_in != width_out:
            raise UserError(
                f"Cannot compare {pair} without a projector: the widths differ, {width_in} and {width_out}. "
                "Set projector=auto, or choose layers of equal width."
            )
        return nn.Identity()
    if kind not in ("auto", fitting):
        raise UserError(f"projector={kind} cannot join {pair}. Set projector={fitting} or projector=auto.")
    if fitting == "conv":
        return nn.Conv2d(width_in, width_out, kernel_size=1)
    return nn.Linear(width_in, width_out)


def _width(shape: torch.Size) -> int:
    return shape[1] if len(shape) == 4 else shape[-1]
