"""Teacher-free distillation by a hand-made teacher, one row and class at a time (Yuan et al., CVPR 2020, section 5)."""

import numpy as np

Array = np.ndarray


def softmax(values: Array) -> Array:
    exponentials = np.exp(values - values.max())
    return exponentials / exponentials.sum()


def kl(p: Array, q: Array) -> float:
    return float(sum(p[k] * (np.log(p[k]) - np.log(q[k])) for k in range(len(p))))


def virtual_teacher(classes: int, label: int, correct_probability: float) -> Array:
    return np.array(
        [correct_probability if k == label else (1 - correct_probability) / (classes - 1) for k in range(classes)]
    )


def paper(logits: Array, labels: Array, correct_probability: float, temperature: float) -> Array:
    """[N], without T². A distribution softened by T is its power 1 / T, normalised."""
    rows = []
    for z, label in zip(logits, labels, strict=True):
        softened = virtual_teacher(len(z), label, correct_probability) ** (1 / temperature)
        rows.append(kl(softened / softened.sum(), softmax(z / temperature)))
    return np.array(rows)


def source(logits: Array, labels: Array, correct_probability: float, temperature: float, multiplier: float) -> float:
    """As the authors' code computes it: the mean over rows and classes, times a multiplier."""
    total = 0.0
    for z, label in zip(logits, labels, strict=True):
        total += kl(softmax(virtual_teacher(len(z), label, correct_probability) / temperature), softmax(z))
    return multiplier * total / logits.size
