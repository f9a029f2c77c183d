"""Fidelity: how far the student does what its teacher does, which is not the same as accuracy."""

import numpy as np
from numpy.typing import NDArray


def top1_agreement(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """Share of the rows for which two networks predict the same class (Stanton et al. 2021, section 3).

    Args:
        a, b: predicted classes [N] for the same rows (samples, or their tokens) in the same order.
    """
    if a.shape != b.shape or a.size == 0:
        raise ValueError(f"predictions of the same samples are needed, not {a.shape} and {b.shape}")
    return float(np.mean(a == b))
