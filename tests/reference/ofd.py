"""Overhaul of feature distillation, one element at a time (Heo et al., ICCV 2019, equations 2, 3 and 5)."""

import itertools
from collections.abc import Sequence

from numpy import inf
from scipy.stats import norm, truncnorm

from reference.convolutions import Array


def ofd(student: Array, teacher: Array, margin: Sequence[float]) -> list[float]:
    """The sum over elements of each sample; a margin for each channel."""
    values = []
    for s, t in zip(student, teacher, strict=True):
        total = 0.0
        for channel, row, column in itertools.product(*map(range, t.shape)):
            ours, target = s[channel, row, column], max(t[channel, row, column], margin[channel])
            if not ours <= target <= 0:
                total += (target - ours) ** 2
        values.append(total)
    return values


def bn_margin(weight: float, bias: float) -> float:
    """The mean of the negative side of a normal distribution; -3 deviations where that side is next to nothing."""
    deviation = abs(weight)
    if norm.cdf(0, loc=bias, scale=deviation) <= 0.001:
        return -3 * deviation
    return float(truncnorm(-inf, -bias / deviation, loc=bias, scale=deviation).mean())


def batch_margin(teacher: Array) -> list[float]:
    margins = []
    for channel in range(teacher.shape[1]):
        negative = [value for value in teacher[:, channel].flat if value < 0]
        margins.append(sum(negative) / len(negative) if negative else 0.0)
    return margins
