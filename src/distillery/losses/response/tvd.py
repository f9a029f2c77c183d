"""Total variation distance between class probabilities (Wen et al., ACL 2023)."""

from torch import Tensor

from distillery.core.numerics import Reduction, log_softmaxes, reduce_rows
from distillery.losses.logit_term import LogitTerm
from distillery.losses.term import OF_CLASSES, Contract


def tvd(student_logits: Tensor, teacher_logits: Tensor, reduction: Reduction = "mean") -> Tensor:
    """½ Σ |p_t - p_s|, from 0 to 1. Its gradient vanishes if the student is certain of another class.

    Args:
        student_logits: [N,C], or [B,L,V] for tokens.
        teacher_logits: the same shape.
        reduction: 'mean' over rows, or 'none' for every row's value: [N] or [B,L].

    Paper: f-Divergence Minimization for Sequence-Level Knowledge Distillation, https://arxiv.org/abs/2307.15190. Values
    equal those of DistiLLM.
    """
    student, teacher = log_softmaxes(student_logits, teacher_logits, 1.0)
    return reduce_rows(0.5 * (teacher.exp() - student.exp()).abs().sum(-1), reduction)


class TVD(LogitTerm, function=tvd):
    """`tvd` on the rows of logits that count."""

    contract = Contract(
        short_name="tvd",
        scale="at most 1",
        properties=OF_CLASSES | {"symmetric"},
        paper="https://arxiv.org/abs/2307.15190",
        formula=r"\tfrac12 \sum_c |p_t^c - p_s^c|",
        values_of="DistiLLM",
    )
