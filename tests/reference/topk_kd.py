"""Distillation from k classes of the teacher, one row and class at a time."""

import numpy as np

Array = np.ndarray


def softmax(logits: Array) -> Array:
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def kl(p: Array, q: Array) -> float:
    return float(sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q, strict=True)))


def greatest(logits: Array, k: int) -> list[int]:
    return sorted(range(len(logits)), key=lambda i: -logits[i])[:k]


def renormalise(student: Array, teacher: Array, k: int, temperature: float) -> Array:
    """[N], without T²: as Model-Optimizer."""
    rows = []
    for s, t in zip(student / temperature, teacher / temperature, strict=True):
        kept = greatest(t, k)
        p, q = (np.array([np.exp(z[i]) for i in kept]) for z in (t, s))
        rows.append(kl(p / p.sum(), q / q.sum()))
    return np.array(rows)


def uniform(student: Array, teacher: Array, k: int, temperature: float) -> tuple[Array, Array]:
    """[N], without T²: TinyViT's soft cross-entropy, and the entropy of its target."""
    cross_entropies, entropies = [], []
    for s, t in zip(student / temperature, teacher / temperature, strict=True):
        p, q = softmax(t), softmax(s)
        kept = greatest(t, k)
        rest = (1 - sum(p[i] for i in kept)) / max(len(p) - k, 1)
        target = [p[i] if i in kept else rest for i in range(len(p))]
        cross_entropies.append(-sum(a * np.log(b) for a, b in zip(target, q, strict=True)))
        entropies.append(-sum(a * np.log(a) for a in target))
    return np.array(cross_entropies), np.array(entropies)


def drawn(teacher: Array, draws: Array, temperature: float) -> Array:
    """The class in whose stretch of [0, 1) each draw falls; the stretches are as long as the probabilities."""
    classes = np.zeros(draws.shape, dtype=int)
    for n, z in enumerate(teacher / temperature):
        ends = np.cumsum(softmax(z))
        for i, u in enumerate(draws[n]):
            classes[n, i] = next(c for c in range(len(z)) if u < ends[c])
    return classes


def sample(student: Array, teacher: Array, drawn: Array, temperature: float) -> tuple[Array, Array]:
    """[N], without T²: the cross-entropy to the drawn classes' frequencies, and the same of the teacher itself."""
    to_student, to_teacher = [], []
    for s, t, classes in zip(student / temperature, teacher / temperature, drawn, strict=True):
        p, q = softmax(t), softmax(s)
        frequencies = [list(classes).count(i) / len(classes) for i in range(len(p))]
        to_student.append(-sum(f * np.log(b) for f, b in zip(frequencies, q, strict=True)))
        to_teacher.append(-sum(f * np.log(a) for f, a in zip(frequencies, p, strict=True)))
    return np.array(to_student), np.array(to_teacher)
