"""SRRL, one sample at a time (Yang et al., ICLR 2021), on NumPy arrays."""

import numpy as np

from reference.convolutions import Array


def srrl(student: Array, teacher: Array, weight: Array, bias: Array, alpha: float, beta: float) -> list[float]:
    """Projected and the teacher's features [B,D], and the teacher's classifier [K,D], [K]."""
    values = []
    for s, t in zip(student, teacher, strict=True):
        features = np.mean((s - t) ** 2)
        logits = np.mean(((weight @ s + bias) - (weight @ t + bias)) ** 2)
        values.append(float(alpha * features + beta * logits))
    return values
