"""Contrastive representation distillation, one pair at a time (Tian et al., ICLR 2020), on NumPy arrays."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def critic(score: float, negatives: int, samples: int, z: float) -> float:
    """h of the paper: the probability that a pair is one of the joint distribution."""
    likelihood = math.exp(score) / z
    return likelihood / (likelihood + negatives / samples)


def nce(scores: Array, z: float, samples: int) -> list[float]:
    """Of each anchor, whose positive is first; `z` is the constant for a data set of so many samples."""
    values = []
    for row in scores:
        negatives = len(row) - 1
        value = -math.log(critic(row[0], negatives, samples, z))
        for score in row[1:]:
            value -= math.log(1 - critic(score, negatives, samples, z))
        values.append(value)
    return values


def first_z(scores: Array, samples: int) -> float:
    """The constant as the authors estimate it, from a first batch."""
    return float(np.mean(np.exp(scores))) * samples


def unit(vector: Array) -> Array:
    return vector / math.sqrt(sum(x * x for x in vector))


def remembered(row: Array, embedded: Array, momentum: float) -> Array:
    """A bank's row after its sample has come."""
    return unit(momentum * row + (1 - momentum) * embedded)


def info_nce(student: Array, teacher: Array, temperature: float) -> list[float]:
    """Both directions, of each sample of the batch."""
    values = []
    for i in range(len(student)):
        of_student = [math.exp(float(student[i] @ other) / temperature) for other in teacher]
        of_teacher = [math.exp(float(teacher[i] @ other) / temperature) for other in student]
        values.append(-math.log(of_student[i] / sum(of_student)) - math.log(of_teacher[i] / sum(of_teacher)))
    return values
