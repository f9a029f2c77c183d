"""The Wasserstein distance between two networks' probabilities, as a problem of transport (Boizard et al., 2024)."""

import itertools

import numpy as np

Array = np.ndarray


def softmax(logits: Array) -> Array:
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def by_assignment(student: Array, teacher: Array) -> float:
    """Of one row: the least sum of |p_i - q_j| over all ways to match the classes of two vocabularies, one to one."""
    p, q = softmax(student), softmax(teacher)
    width = max(len(p), len(q))
    p, q = np.pad(p, (0, width - len(p))), np.pad(q, (0, width - len(q)))
    return min(float(np.abs(p - q[list(order)]).sum()) for order in itertools.permutations(range(width)))
