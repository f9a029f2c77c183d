"""How near one network's predictions are to another's: figures of rows of logits."""

import torch
from torch import Tensor

from distillery.core.numerics import kl, log_softmax, log_softmaxes


def predictions(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Of each row [N]: `entropy` in nats, `confidence` (the greatest probability), whether its class is `correct`.

    Args:
        logits: [N,C].
        target: [N].
    """
    log_p = log_softmax(logits, 1.0)
    likeliest = log_p.max(-1)
    return {
        "entropy": torch.special.entr(log_p.exp()).sum(-1),
        "confidence": likeliest.values.exp(),
        "correct": (likeliest.indices == target).float(),
    }


def divergences(student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    """Of each row [N], from logits [N,C] of both.

    `agreement`: whether the likeliest class is the same. `kl` and `reverse_kl`: KL(teacher ‖ student) and KL(student ‖
    teacher), in nats. `acceptance`: Σ min(s, t), the chance that speculative decoding accepts a token of the student
    (Leviathan et al. 2023, https://arxiv.org/abs/2211.17192, corollary 3.6); it is 1 - the total variation distance.
    """
    log_s, log_t = log_softmaxes(student, teacher, 1.0)
    return {
        "agreement": (log_s.argmax(-1) == log_t.argmax(-1)).float(),
        "kl": kl(log_t, log_s),
        "reverse_kl": kl(log_s, log_t),
        "acceptance": torch.minimum(log_s, log_t).exp().sum(-1),
    }


def by_place(values: Tensor, place: Tensor, width: int) -> list[float]:
    """The mean of values [N] over `width` places each: those at 0 to width - 1, and so on."""
    part = place // width
    return (part.bincount(values.double()) / part.bincount()).tolist()
