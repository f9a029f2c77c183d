"""KL divergences from a few classes of each row, as a teacher's cache or a served teacher gives them.

They read the log-probabilities of the same k classes of both networks and the logarithm of the mass of all others. The
logits are not needed. A temperature other than 1 must be applied before: without the shape of the tail it cannot be.
"""

from typing import Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from distillery.core.errors import UserError
from distillery.core.kinds import conform
from distillery.core.numerics import kl

Sparse = Literal["tail", "truncate", "renormalise_teacher", "renormalise"]
Direction = Literal["forward", "reverse"]
RESOLUTION = 1e-7  # the smallest tail that 1 - (the mass of k classes) resolves in float32


class TopK(NamedTuple):
    """Log-probabilities of k classes, `kept` [..., k], and the logarithm of the others' mass, `tail` [...]."""

    kept: Tensor
    tail: Tensor

    @classmethod
    def of(cls, log_p: Tensor, classes: Tensor) -> Self:
        """From the log-probabilities of all classes [..., C] and k indices [..., k].

        The tail is summed in log space, so it is exact however small it is. Of no classes it is -inf.
        """
        kept = log_p.gather(-1, classes)
        if classes.shape[-1] == log_p.shape[-1]:
            return cls(kept, torch.full_like(log_p[..., 0], -torch.inf, requires_grad=False))
        return cls(kept, log_p.scatter(-1, classes, -torch.inf).logsumexp(-1))


def log_rest(kept: Tensor) -> Tensor:
    """log(1 - Σ exp(kept)), the tail of a network of which only k log-probabilities are known: [..., k] → [...].

    At least log 1e-7 = -16.1. A smaller tail cannot be told from rounding, and is given no gradient.
    """
    return (-torch.expm1(kept.logsumexp(-1).clamp_max(-RESOLUTION))).log()


def sparse_kl(student: TopK, teacher: TopK, missing: Sparse, direction: Direction = "forward") -> Tensor:
    """KL(teacher ‖ student), or 'reverse' KL(student ‖ teacher), from k classes, in nats: [...].

    `distillery.losses.response.topk_kd.topk_kd` says what each value of `missing` computes, and how it is biased.

    Raises:
        UserError: 'renormalise_teacher' in reverse.
    """
    conform("missing", missing, Sparse)
    check_direction(missing, direction)
    if missing == "renormalise_teacher":
        return kl(F.log_softmax(teacher.kept, -1), student.kept)
    p, q = (teacher, student) if direction == "forward" else (student, teacher)
    if missing == "renormalise":
        return kl(F.log_softmax(p.kept, -1), F.log_softmax(q.kept, -1))
    rows = kl(p.kept, q.kept)
    return rows + _of_tails(p.tail, q.tail) if missing == "tail" else rows


def _of_tails(log_p: Tensor, log_q: Tensor) -> Tensor:
    """The summand of the bucket. Nothing where p has no tail; where q has none, it counts as one of 1e-7."""
    floored = torch.where(log_q.isneginf(), torch.full_like(log_q, RESOLUTION).log(), log_q)
    return log_p.exp() * (log_p - floored).masked_fill(log_p.isneginf(), 0.0)


def sampled_kl_rows(student: Tensor, teacher: Tensor, log_proposal: Tensor | None = None) -> Tensor:
    """An unbiased estimate of KL(teacher ‖ student) from n classes that were drawn with replacement: [..., n] → [...].

    It is the sum over the drawn classes, divided by n, of t/q · (log t - log s). It is never divided by Σ t/q, which
    would be biased. Value and gradient are unbiased; the value may be negative.

    Args:
        student: log-probabilities of the drawn classes.
        teacher: the same of the teacher.
        log_proposal: log-probabilities of the distribution q that they were drawn from; None: the teacher's own.

    Paper: Sparse Logit Sampling, https://arxiv.org/abs/2503.16870.
    """
    gap = teacher - student
    return (gap if log_proposal is None else (teacher - log_proposal).exp() * gap).mean(-1)


def drawn(log_p: Tensor, draws: Tensor) -> Tensor:
    """A class for each draw, [N,k]: a class of probability p for a share p of all draws.

    Args:
        log_p: log-probabilities [N,C].
        draws: [N,k], uniform in [0, 1).
    """
    # In integers, as parts of 2^30: their sum is exact, and so the same in every run, on CUDA as well.
    cumulative = (log_p.detach().exp() * 2**30).round().int().cumsum(-1, dtype=torch.int32)
    places = torch.searchsorted(cumulative, (draws.double() * cumulative[..., -1:]).int(), right=True)
    return places.clamp_max(log_p.shape[-1] - 1)  # if the product is rounded up to the total


def check_direction(missing: str, direction: Direction) -> None:
    """Raise UserError if `missing` has no reverse form."""
    conform("direction", direction, Direction)
    why = {
        "sample": "classes drawn from the teacher estimate KL(teacher ‖ student) only",
        "renormalise_teacher": "a teacher without mass outside of its k classes is infinitely far from the student",
    }
    if direction == "reverse" and missing in why:
        raise UserError(f"direction=reverse: {why[missing]}. Use missing=tail, or direction=forward.")
