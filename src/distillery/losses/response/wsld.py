"""Weighted soft labels (Zhou et al., ICLR 2021)."""

import torch
from torch import Tensor

from distillery.core.numerics import Reduction, log_softmax, one_hot, reduce_rows, require_same_shape
from distillery.losses.logit_term import LogitTerm
from distillery.losses.settings import Positive
from distillery.losses.term import Contract


def wsld(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    temperature: float = 2.0,
    t_squared: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy to the teacher's soft labels, in nats, times T², with less weight on rows that the student knows.

    A row's weight is 1 - exp(-student's cross-entropy / teacher's), both with the hard label at T = 1. No gradient
    flows through it.

    Args:
        student_logits: [N,C].
        teacher_logits: [N,C].
        target: [N], class indices.
        temperature: T; the soft labels and the student's probabilities are softmaxes of logits / T.
        t_squared: multiply by T².
        reduction: 'mean' over rows, or 'none': [N].

    Paper: Rethinking Soft Labels for Knowledge Distillation, https://arxiv.org/abs/2102.00650. Values equal those
    of MMRazor, with 1e-7 added to the teacher's cross-entropy.
    """
    require_same_shape(student_logits, teacher_logits)
    is_target = one_hot(target, student_logits.shape[-1])
    of_student, of_teacher = (
        -log_softmax(x.detach(), 1.0).masked_fill(~is_target, 0.0).sum(-1) for x in (student_logits, teacher_logits)
    )
    weight = -torch.expm1(-of_student / (of_teacher + 1e-7))
    soft_labels = log_softmax(teacher_logits, temperature).exp()
    rows = -weight * (soft_labels * log_softmax(student_logits, temperature)).sum(-1)
    return reduce_rows(rows * temperature**2 if t_squared else rows, reduction)


class WSLD(LogitTerm, function=wsld):
    """`wsld` on the rows of logits that count. It needs class indices as labels."""

    contract = Contract(
        short_name="wsld",
        reads_labels=True,
        form="cross_entropy",
        scale="at most T² log C with an untrained student",
        paper="https://arxiv.org/abs/2102.00650",
        formula=r"-w \, T^2 \sum_c p_T(z_t)^c \log p_T(z_s)^c,"
        r" \quad w = 1 - \exp\big(-\tfrac{\log p_s^y}{\log p_t^y}\big) \text{, detached}",
        values_of="MMRazor",
    )

    temperature: Positive = 2.0
    t_squared: bool = True
