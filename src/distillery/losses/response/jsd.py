"""Generalised Jensen-Shannon divergence (GKD; Agarwal et al., ICLR 2024)."""

import math
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from distillery.core.kinds import Says
from distillery.core.numerics import Reduction, kl, log_mix, log_softmaxes, reduce_rows
from distillery.losses.logit_term import LogitTerm
from distillery.losses.settings import Positive
from distillery.losses.term import OF_CLASSES, Contract


def jsd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    beta: float = 0.5,
    temperature: float = 1.0,
    t_squared: bool = False,
    divided: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """β · KL(teacher ‖ m) + (1 - β) · KL(student ‖ m), m = β · teacher + (1 - β) · student, in nats.

    It is not continuous in β: at 0 it is KL(teacher ‖ student) and at 1 KL(student ‖ teacher), as in TRL, but it tends
    to 0 as β approaches either. A sweep of β that includes 0 or 1 compares losses of different scale.

    With `divided` it is divided by β · (1 - β), and is continuous: it tends to the same two divergences. β leads from
    one to the other at about the same scale, and one learning rate suits all.

    Args:
        student_logits: [N,C], or [B,L,V] for tokens.
        teacher_logits: the same shape.
        beta: β, from 0 to 1.
        temperature: T; both softmaxes are of logits / T.
        t_squared: multiply by T².
        divided: divide by β · (1 - β).
        reduction: 'mean' over rows, or 'none' for every row's value: [N] or [B,L].

    Paper: On-Policy Distillation of Language Models, https://arxiv.org/abs/2306.13649, equation 1. Values equal those
    of TRL, which does not multiply by T².
    """
    student, teacher = log_softmaxes(student_logits, teacher_logits, temperature)
    if divided and not 0.1 <= beta <= 0.9:
        rows = _divided(student, teacher, beta)
    elif beta == 0:
        rows = kl(teacher, student)
    elif beta == 1:
        rows = kl(student, teacher)
    else:
        mixed = log_mix(teacher, student, beta)
        rows = beta * kl(teacher, mixed) + (1 - beta) * kl(student, mixed)
        rows = rows / (beta * (1 - beta)) if divided else rows
    return reduce_rows(rows * temperature**2 if t_squared else rows, reduction)


def _divided(log_s: Tensor, log_t: Tensor, beta: float) -> Tensor:
    """KL(t ‖ m) / (1 - β) + KL(s ‖ m) / β, without cancellation near either end of β and near agreement.

    Since Σ (s - t) = 0, the first is Σ (s - t) · (1 - log(m/t) / (m/t - 1)), where m/t - 1 = (1 - β) · (s/t - 1), and
    the second is its mirror image. Every summand is non-negative. For β in the middle the plain form is as good, and
    five times as fast.
    """
    gap = log_s - log_t
    more = log_s.exp() - log_t.exp()
    return (more * (_shortfall(gap, 1 - beta, beta) - _shortfall(-gap, beta, 1 - beta))).sum(-1)


def _shortfall(gap: Tensor, share: float, rest: float) -> Tensor:
    """1 - log(1 + u) / u for u = share · (exp(gap) - 1), where rest = 1 - share. It has the sign of u."""
    if share == 0:
        return torch.zeros_like(gap)
    u = share * gap.clamp_max(80.0).expm1()  # beyond, the shortfall is 1 to the last digit
    near, low = u.abs() < 0.01, u < -0.5
    small, far = torch.where(near, u, 0.0), torch.where(near, 1.0, u)  # each branch has finite gradients everywhere
    series = small * (1 / 2 - small * (1 / 3 - small * (1 / 4 - small * (1 / 5 - small * (1 / 6 - small / 7)))))
    log_rest = torch.full_like(gap, math.log(rest) if rest > 0 else -math.inf)
    log = torch.where(low, torch.logaddexp(gap + math.log(share), log_rest), torch.where(low, 1.0, far).log1p())
    return torch.where(near, series, 1 - log / far)


class JSD(LogitTerm, function=jsd):
    """`jsd` on the rows of logits that count. It is symmetric only at β = 0.5."""

    contract = Contract(
        short_name="jsd",
        scale="at most log 2; at β = 0 or 1 like kd; divided: between kd at T = 1 and reverse_kl",
        properties=OF_CLASSES | {"symmetric"},
        paper="https://arxiv.org/abs/2306.13649",
        formula=r"\beta \, \mathrm{KL}(p_t \,\|\, m) + (1 - \beta) \, \mathrm{KL}(p_s \,\|\, m),"
        r" \quad m = \beta p_t + (1 - \beta) p_s",
        values_of="TRL",
    )

    beta: Annotated[float, Ge(0), Le(1), Says("from 0 to 1")] = 0.5
    temperature: Positive = 1.0
    t_squared: bool = False
    divided: bool = False
