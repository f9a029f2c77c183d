"""Decoupled knowledge distillation (Zhao et al., CVPR 2022)."""

import torch
from torch import Tensor

from distillery.core.numerics import (
    Reduction,
    kl,
    log_softmax,
    log_softmax_of_rest,
    one_hot,
    reduce_rows,
    require_same_shape,
)
from distillery.losses.logit_term import LogitTerm
from distillery.losses.settings import Positive
from distillery.losses.term import Contract


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    t_squared: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    """α · TCKD + β · NCKD, in nats, times T²: KL of (target, rest) and KL among the rest (equation 7).

    Args:
        student_logits: [N,C], C ≥ 2.
        teacher_logits: [N,C].
        target: [N], class indices.
        alpha: weight of the target-class part.
        beta: weight of the non-target part.
        temperature: T; all softmaxes are of logits / T.
        t_squared: multiply by T².
        reduction: 'mean' over rows, or 'none': [N].

    Paper: Decoupled Knowledge Distillation, https://arxiv.org/abs/2203.08679. Values equal those of mdistiller.
    The probability of the rest is summed in log space, since log(softmax) is -inf for a confident student.
    """
    require_same_shape(student_logits, teacher_logits)
    is_target = one_hot(target, student_logits.shape[-1])
    student_binary, student_rest = _decouple(student_logits, is_target, temperature)
    teacher_binary, teacher_rest = _decouple(teacher_logits, is_target, temperature)
    rows = alpha * kl(teacher_binary, student_binary) + beta * kl(teacher_rest, student_rest)
    return reduce_rows(rows * temperature**2 if t_squared else rows, reduction)


def _decouple(logits: Tensor, is_target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (target, rest) [N,2], and of each class among the rest [N,C] (target: 0)."""
    log_p = log_softmax(logits, temperature)
    of_target = log_p.masked_fill(~is_target, 0.0).sum(-1)
    of_rest = log_p.masked_fill(is_target, -torch.inf).logsumexp(-1)
    return torch.stack([of_target, of_rest], dim=-1), log_softmax_of_rest(logits, is_target, temperature)


class DKD(LogitTerm, function=dkd):
    """`dkd` on the rows of logits that count. It needs class indices as labels."""

    contract = Contract(
        short_name="dkd",
        reads_labels=True,
        scale="10 to 100 at T = 4, beta = 8 with an untrained student",
        paper="https://arxiv.org/abs/2203.08679",
        formula=r"T^2 \big[\alpha \, \mathrm{KL}(b_t \,\|\, b_s) + \beta \, \mathrm{KL}(\hat p_t \,\|\, \hat p_s)\big],"
        r" \quad b = (p^y, 1 - p^y), \; \hat p = p_{\setminus y} / (1 - p^y)",
        values_of="mdistiller",
    )

    alpha: float = 1.0
    beta: float = 8.0
    temperature: Positive = 4.0
    t_squared: bool = True
