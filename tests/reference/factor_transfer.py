"""Factor transfer, one sample at a time (Kim et al., NeurIPS 2018, equations 1 to 3)."""

from collections.abc import Callable, Sequence

import numpy as np

from reference.convolutions import Array, convolution, leaky, transposed_convolution

Layer = tuple[Array, Array]  # weight and bias


def through(features: Array, layers: Sequence[Layer], apply: Callable[[Array, Array, Array], Array]) -> Array:
    for weight, bias in layers:
        features = leaky(apply(features, weight, bias), 0.1)
    return features


def reconstruction(teacher: Array, encoder: Sequence[Layer], decoder: Sequence[Layer]) -> list[float]:
    """The paraphraser's mean squared error of each sample."""
    codes = [through(t, encoder, convolution) for t in teacher]
    made = [through(code, decoder, transposed_convolution) for code in codes]
    return [float(np.mean((x - t) ** 2)) for x, t in zip(made, teacher, strict=True)]


def transfer(
    student: Array, teacher: Array, translator: Sequence[Layer], encoder: Sequence[Layer], p: float
) -> list[float]:
    """Mean |difference|^p of each sample's two factors, each of unit length."""
    values = []
    for s, t in zip(student, teacher, strict=True):
        factor_s, factor_t = through(s, translator, convolution), through(t, encoder, convolution)
        gap = factor_t / np.linalg.norm(factor_t) - factor_s / np.linalg.norm(factor_s)
        values.append(float(np.mean(np.abs(gap) ** p)))
    return values
