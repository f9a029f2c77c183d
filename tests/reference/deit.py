"""DeiT's distillation losses, one row and class at a time (Touvron et al., ICML 2021, equations 2 and 3)."""

import math


def log_softmax(row: list[float], temperature: float) -> list[float]:
    scaled = [z / temperature for z in row]
    log_sum = max(scaled) + math.log(sum(math.exp(z - max(scaled)) for z in scaled))
    return [z - log_sum for z in scaled]


def hard(student: list[list[float]], teacher: list[list[float]]) -> list[float]:
    return [-log_softmax(s, 1.0)[t.index(max(t))] for s, t in zip(student, teacher, strict=True)]


def soft(student: list[list[float]], teacher: list[list[float]], temperature: float) -> list[float]:
    """Without T²."""
    rows = []
    for s, t in zip(student, teacher, strict=True):
        log_q, log_p = log_softmax(s, temperature), log_softmax(t, temperature)
        rows.append(sum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True)))
    return rows
