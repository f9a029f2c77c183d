"""Knowledge review, one sample and one position at a time (Chen et al., CVPR 2021), on NumPy arrays.

BatchNorm is in evaluation, as it is made: mean 0, variance 1.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from reference.convolutions import Array, convolution

State = Mapping[str, Array]  # of one fusion block
EPSILON = 1e-5  # of BatchNorm


def pooled(features: Array, grid: int) -> Array:
    """[C,H,W] → [C,grid,grid], where grid divides H and W."""
    channels, height, width = features.shape
    out = np.zeros((channels, grid, grid))
    for y in range(grid):
        for x in range(grid):
            rows = slice(y * height // grid, (y + 1) * height // grid)
            columns = slice(x * width // grid, (x + 1) * width // grid)
            out[:, y, x] = features[:, rows, columns].mean((1, 2))
    return out


def context(student: Array, teacher: Array) -> float:
    """The hierarchical context loss of one sample and level."""
    total, weights, weight = float(np.mean((student - teacher) ** 2)), 1.0, 1.0
    for grid in (4, 2, 1):
        if grid >= student.shape[1]:
            continue
        weight /= 2
        weights += weight
        total += weight * float(np.mean((pooled(student, grid) - pooled(teacher, grid)) ** 2))
    return total / weights


def nearest(features: Array, height: int, width: int) -> Array:
    """[C,H,W] → [C,height,width]: each position takes the value of the cell it falls into."""
    out = np.zeros((len(features), height, width))
    for y in range(height):
        for x in range(width):
            out[:, y, x] = features[:, y * features.shape[1] // height, x * features.shape[2] // width]
    return out


def pointwise(features: Array, weight: Array) -> Array:
    """[C,H,W], [D,C,1,1] → [D,H,W]."""
    return np.einsum("dc,chw->dhw", weight[:, :, 0, 0], features)


def review(student: Sequence[Array], teacher: Sequence[Array], states: Sequence[State]) -> float:
    """Of one sample: levels from shallow to deep, [C,H,W] each, and their fusion blocks."""
    norm = 1 / np.sqrt(1 + EPSILON)
    deeper, total = None, 0.0
    for x, target, state in reversed(list(zip(student, teacher, states, strict=True))):
        x = norm * pointwise(x, state["enter.0.weight"])
        if deeper is not None:
            deeper = nearest(deeper, *x.shape[1:])
            both = pointwise(np.concatenate([x, deeper]), state["attend.0.weight"])
            attention = 1 / (1 + np.exp(-(both + state["attend.0.bias"][:, None, None])))
            x = x * attention[0] + deeper * attention[1]
        deeper = nearest(x, *target.shape[1:])
        weight = state["leave.0.weight"]
        total += context(norm * convolution(deeper, weight, np.zeros(len(weight))), target)
    return total
