"""Adaptive KL of one row, by loops over its classes, from the two public definitions of head and tail."""

import math
from collections.abc import Sequence


def probabilities(logits: Sequence[float], temperature: float) -> list[float]:
    exponentials = [math.exp(z / temperature) for z in logits]
    return [e / sum(exponentials) for e in exponentials]


def head_of_llm_kd_akl(teacher: Sequence[float], mu: float) -> set[int]:
    """From the likeliest on, as long as their sum does not pass mu; the likeliest in any case."""
    likeliest_first = sorted(range(len(teacher)), key=lambda c: -teacher[c])
    head, mass = {likeliest_first[0]}, 0.0
    for c in likeliest_first:
        mass += teacher[c]
        if mass > mu:
            break
        head.add(c)
    return head


def head_of_dskd(teacher: Sequence[float], mu: float) -> set[int]:
    """All but the least likely ones whose sum stays below mu."""
    head, mass = set(range(len(teacher))), 0.0
    for c in sorted(range(len(teacher)), key=lambda c: teacher[c]):
        mass += teacher[c]
        if mass >= mu:
            break
        head.remove(c)
    return head


HEADS = {"llm_kd_akl": head_of_llm_kd_akl, "dskd": head_of_dskd}


def weights(student: Sequence[float], teacher: Sequence[float], mu: float, variant: str) -> tuple[float, float]:
    """Of KL(teacher ‖ student) and of KL(student ‖ teacher), from the probabilities."""
    head = HEADS[variant](teacher, mu)
    gap = [abs(t - s) for s, t in zip(student, teacher, strict=True)]
    of_head = sum(gap[c] for c in head) / sum(gap)
    return of_head, 1 - of_head


def kl(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def akl(
    student_logits: Sequence[float],
    teacher_logits: Sequence[float],
    mu: float,
    variant: str,
    temperature: float,
    fixed: tuple[float, float] | None = None,
) -> float:
    """The loss of one row; `fixed` weights take the place of the row's own."""
    student, teacher = probabilities(student_logits, temperature), probabilities(teacher_logits, temperature)
    of_forward, of_reverse = fixed or weights(student, teacher, mu, variant)
    return of_forward * kl(teacher, student) + of_reverse * kl(student, teacher)
