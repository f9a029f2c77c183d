"""Cross-entropies of several teachers with the labels, in plain Python."""

import math

import numpy as np
from torch import Tensor


def cross_entropies(logits: Tensor, target: Tensor) -> np.ndarray:
    """[K,N] for logits [K,N,C] and class indices [N], one at a time."""
    rows = [
        [
            -math.log(math.exp(sample[label]) / sum(map(math.exp, sample)))
            for sample, label in zip(teacher, target, strict=True)
        ]
        for teacher, target in ((teacher.tolist(), target.tolist()) for teacher in logits)
    ]
    return np.array(rows)
