"""Masked generative distillation, one sample at a time (Yang et al., ECCV 2022, equations 1 to 5)."""

from collections.abc import Sequence

import numpy as np

from reference.convolutions import Array, convolution, leaky


def mgd(student: Array, teacher: Array, keep: Array, generation: Sequence[Array]) -> list[float]:
    """The sum over elements of each sample; `generation`: weight, bias, weight, bias of its two convolutions."""
    values = []
    for s, t, kept in zip(student, teacher, keep, strict=True):
        hidden = leaky(convolution(s * kept, generation[0], generation[1]), 0.0)
        generated = convolution(hidden, generation[2], generation[3])
        values.append(float(np.sum((t - generated) ** 2)))
    return values
