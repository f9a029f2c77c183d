"""Inter-channel correlation (Liu et al., ICCV 2021, https://arxiv.org/abs/2202.03680) by loops over channels."""

import numpy as np


def inner_products(features: np.ndarray) -> np.ndarray:
    """[C,C] of one sample's maps [C,H,W]."""
    found = np.zeros((len(features), len(features)))
    for a in range(len(features)):
        for b in range(len(features)):
            found[a, b] = sum(x * y for x, y in zip(features[a].flat, features[b].flat, strict=True))
    return found


def author(student: np.ndarray, teacher: np.ndarray) -> float:
    """As in the published code: rows of unit length, a sum over C² divided by C."""
    total = 0.0
    for ours, theirs in zip(inner_products(student), inner_products(teacher), strict=True):
        unit = ours / np.sqrt((ours**2).sum()), theirs / np.sqrt((theirs**2).sum())
        total += ((unit[0] - unit[1]) ** 2).sum()
    return total / len(student)


def paper(student: np.ndarray, teacher: np.ndarray) -> float:
    """The inner products themselves, a mean over C²."""
    return float(((inner_products(student) - inner_products(teacher)) ** 2).sum()) / len(student) ** 2
