"""Generalised Jensen-Shannon divergence (GKD; Agarwal et al., ICLR 2024)."""

from typing import Annotated

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
    reduction: Reduction = "mean",
) -> Tensor:
    """β · KL(teacher ‖ m) + (1 - β) · KL(student ‖ m), m = β · teacher + (1 - β) · student, in nats.

    It is not continuous in β: at 0 it is KL(teacher ‖ student) and at 1 KL(student ‖ teacher), as in TRL, but it tends
    to 0 as β approaches either. A sweep of β that includes 0 or 1 compares losses of different scale.

    Args:
        student_logits: [N,C], or [B,L,V] for tokens.
        teacher_logits: the same shape.
        beta: β, from 0 to 1.
        temperature: T; both softmaxes are of logits / T.
        t_squared: multiply by T².
        reduction: 'mean' over rows, or 'none' for every row's value: [N] or [B,L].

    Paper: On-Policy Distillation of Language Models, https://arxiv.org/abs/2306.13649, equation 1. Values equal those
    of TRL, which does not multiply by T².
    """
    student, teacher = log_softmaxes(student_logits, teacher_logits, temperature)
    if beta == 0:
        rows = kl(teacher, student)
    elif beta == 1:
        rows = kl(student, teacher)
    else:
        mixed = log_mix(teacher, student, beta)
        rows = beta * kl(teacher, mixed) + (1 - beta) * kl(student, mixed)
    return reduce_rows(rows * temperature**2 if t_squared else rows, reduction)


class JSD(LogitTerm, function=jsd):
    """`jsd` on the rows of logits that count. It is symmetric only at β = 0.5."""

    contract = Contract(
        short_name="jsd",
        scale="at most log 2; at β = 0 or 1 like kd",
        properties=OF_CLASSES | {"symmetric"},
        paper="https://arxiv.org/abs/2306.13649",
        formula=r"\beta \, \mathrm{KL}(p_t \,\|\, m) + (1 - \beta) \, \mathrm{KL}(p_s \,\|\, m),"
        r" \quad m = \beta p_t + (1 - \beta) p_s",
        values_of="TRL",
    )

    beta: Annotated[float, Ge(0), Le(1), Says("from 0 to 1")] = 0.5
    temperature: Positive = 1.0
    t_squared: bool = False
