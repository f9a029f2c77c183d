"""Bring the features of two layers to one shape, without parameters."""

import math

import torch.nn.functional as F
from torch import Size, Tensor

from distillery.core.numerics import at_least_float32, pool_to_common_size

PREFIX = 5  # at most so many tokens precede the patches: a class token and four registers (DINOv2)


def align(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in at least float32 and in one shape. Features that have it already pass unchanged.

    - Maps [B,C,H,W] of different sizes are average-pooled to the smaller height and the smaller width.
    - Tokens [B,L,D] stay tokens if both layers have the same number. Otherwise they become maps (`as_map`) first.
    - If one of the two is a vector [B,D], the other is averaged over its positions.
    - If the widths differ, as they do without a projector, neighbouring channels of the wider layer are averaged.

    A loss that needs maps rather than tokens calls `align(as_map(student), as_map(teacher))`.

    Raises:
        ValueError: the two cannot be brought to one shape.
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    if 2 in (student.dim(), teacher.dim()):
        student, teacher = _as_vector(student), _as_vector(teacher)
    elif not student.dim() == teacher.dim() == 3 or student.shape[1] != teacher.shape[1]:
        student, teacher = align_maps(student, teacher)
    width = min(channels(student.shape), channels(teacher.shape))
    return _narrowed(student, width), _narrowed(teacher, width)


def align_maps(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both as maps of the same height and width, each with its own channels: [B,C,H,W] and [B,C',H,W]."""
    return pool_to_common_size(as_map(student), as_map(teacher))


def as_map(features: Tensor) -> Tensor:
    """Tokens [B,L,D] as the map [B,D,S,S] of their square grid. Maps pass unchanged.

    S² is the largest square that is at most L. The first L - S² tokens, which must be at most five, belong to no
    position (class token, registers) and are left out. If there are more, the tokens come from a text or from an
    image that is not square.

    Raises:
        ValueError: the features are neither a map nor tokens of a square grid.
    """
    if features.dim() == 4:
        return features
    if features.dim() != 3:
        raise ValueError(f"{list(features.shape)} has no positions. Choose a layer before the global pooling.")
    length = features.shape[1]
    side = math.isqrt(length)
    prefix = length - side * side
    if not 0 <= prefix <= min(PREFIX, length - 1):
        raise ValueError(
            f"{length} tokens are not a square grid with at most {PREFIX} tokens before it. "
            "Choose layers with the same number of tokens."
        )
    return features[:, prefix:].mT.unflatten(2, (side, side))


def channels(shape: Size) -> int:
    """The width of maps [B,C,H,W], tokens [B,L,D] or vectors [B,D]."""
    return shape[1 if len(shape) == 4 else -1]


def _as_vector(features: Tensor) -> Tensor:
    return features if features.dim() == 2 else as_map(features).mean((2, 3))


def _narrowed(features: Tensor, width: int) -> Tensor:
    if channels(features.shape) == width:
        return features
    dim = 1 if features.dim() == 4 else -1
    last = features.movedim(dim, -1)
    rows = last.reshape(len(last), -1, last.shape[-1])
    return F.adaptive_avg_pool1d(rows, width).reshape(*last.shape[:-1], width).movedim(-1, dim)
