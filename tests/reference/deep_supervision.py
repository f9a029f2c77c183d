"""What one exit branch learns from, a row and class at a time (Zhang et al., ICCV 2019)."""

import math


def log_softmax(row: list[float], temperature: float) -> list[float]:
    log_sum = math.log(sum(math.exp(z / temperature) for z in row))
    return [z / temperature - log_sum for z in row]


def rows(
    branch: list[list[float]], deepest: list[list[float]], labels: list[int], alpha: float, temperature: float
) -> tuple[list[float], list[float]]:
    """As the authors' code has it, with the cross-entropy to the deepest classifier; and its entropy, times α."""
    values, entropies = [], []
    for b, d, label in zip(branch, deepest, labels, strict=True):
        soft = [math.exp(z) for z in log_softmax(d, temperature)]
        from_deepest = -sum(p * q for p, q in zip(soft, log_softmax(b, temperature), strict=True))
        values.append((1 - alpha) * -log_softmax(b, 1.0)[label] + alpha * from_deepest)
        entropies.append(alpha * -sum(p * math.log(p) for p in soft))
    return values, entropies
