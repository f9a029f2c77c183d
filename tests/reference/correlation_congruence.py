"""Correlation congruence (Peng et al., ICCV 2019, https://arxiv.org/abs/1904.01802) by loops over pairs of samples."""

import math

import numpy as np


def author(student: np.ndarray, teacher: np.ndarray) -> float:
    """The form that the authors gave to RepDistiller: products of neighbours' absolute differences."""
    total = 0.0
    for i in range(len(student) - 1):
        for c in range(student.shape[1]):
            total += abs(student[i, c] - teacher[i, c]) * abs(student[i + 1, c] - teacher[i + 1, c])
    return total / (len(student) - 1)


def kernel(x: np.ndarray, y: np.ndarray, gamma: float, p: int) -> float:
    """Taylor polynomial of exp(-gamma ‖x - y‖²) for vectors brought to unit length, for which ‖x - y‖² = 2 - 2 x·y."""
    cosine = float(x @ y) / math.sqrt(float(x @ x) * float(y @ y))
    return math.exp(-2 * gamma) * sum((2 * gamma * cosine) ** k / math.factorial(k) for k in range(p + 1))


def gaussian(student: np.ndarray, teacher: np.ndarray, gamma: float, p: int) -> float:
    """The paper's mean squared difference of the two matrices of correlations."""
    total = 0.0
    for i in range(len(student)):
        for j in range(len(student)):
            ours = kernel(student[i], student[j], gamma, p)
            total += (ours - kernel(teacher[i], teacher[j], gamma, p)) ** 2
    return total / len(student) ** 2
