"""Regression of the teacher's logits (Ba and Caruana, NeurIPS 2014)."""

import torch.nn.functional as F
from torch import Tensor

from distillery.core.numerics import Reduction, comparable, reduce_rows
from distillery.losses.logit_term import LogitTerm
from distillery.losses.term import Contract


def logit_mse(
    student_logits: Tensor, teacher_logits: Tensor, scale: float = 1.0, reduction: Reduction = "mean"
) -> Tensor:
    """Mean squared error of the logits themselves, including a constant shift of all of them.

    Args:
        student_logits: [N,C].
        teacher_logits: [N,C].
        scale: factor of the teacher's logits. Annealed KD raises it to 1 as the temperature falls.
        reduction: 'mean' over rows, or 'none' for the mean over each row's classes: [N].

    Paper: Do Deep Nets Really Need to be Deep?, https://arxiv.org/abs/1312.6184. Values equal those of TextBrewer,
    which averages over classes; the paper (equation 1) has half of the sum. The scale: Annealing Knowledge
    Distillation, https://arxiv.org/abs/2104.07163.
    """
    student, teacher = comparable(student_logits, teacher_logits)
    return reduce_rows(F.mse_loss(student, scale * teacher, reduction="none").mean(-1), reduction)


class LogitMSE(LogitTerm, function=logit_mse):
    """`logit_mse` on the rows of logits that count."""

    contract = Contract(
        short_name="logit_mse",
        reduction="mean over classes and rows",
        scale="the mean square of the teacher's logits, about 1 to 30, with an untrained student",
        properties=frozenset({"non_negative", "class_permutation", "batch_permutation", "symmetric"}),
        paper="https://arxiv.org/abs/1312.6184",
        formula=r"\tfrac1C \sum_c (z_s^c - z_t^c)^2",
        values_of="TextBrewer",
    )

    scale: float = 1.0
