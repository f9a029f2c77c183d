"""Distillation of independent labels, each with a probability of its own (Yang et al., ICCV 2023)."""

import torch.nn.functional as F
from torch import Tensor

from distillery.core.numerics import Reduction, comparable, reduce_rows
from distillery.losses.logit_term import LogitTerm
from distillery.losses.settings import Positive
from distillery.losses.term import Contract


def bernoulli_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    t_squared: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    """KL(teacher ‖ student) of the probabilities sigmoid(z / T) of each label, in nats, times T²; mean over labels.

    For a single label it equals `kd` over two classes with the logits [0, z].

    Args:
        student_logits: [N,C].
        teacher_logits: [N,C].
        temperature: T; the logits are divided by it.
        t_squared: multiply by T², which keeps the size of the gradient as T changes.
        reduction: 'mean' over rows, or 'none' for every row's value: [N].

    Paper: Multi-Label Knowledge Distillation, https://arxiv.org/abs/2308.06453 (multi-label logits distillation), with
    T = 1. It sums over the labels; the mean is on the scale of the binary cross-entropy, whatever the number of labels.
    """
    student, teacher = comparable(student_logits, teacher_logits)
    student, teacher = student / temperature, teacher / temperature
    of_one, of_zero = F.logsigmoid(teacher), F.logsigmoid(-teacher)
    labels = of_one.exp() * (of_one - F.logsigmoid(student)) + of_zero.exp() * (of_zero - F.logsigmoid(-student))
    rows = labels.mean(-1)
    return reduce_rows(rows * temperature**2 if t_squared else rows, reduction)


class BernoulliKD(LogitTerm, function=bernoulli_kd):
    """`bernoulli_kd` on the rows of logits that count."""

    contract = Contract(
        short_name="bernoulli_kd",
        scale="0.05 to 2 with an untrained student",
        reduction="mean over labels and rows",
        properties=frozenset({"non_negative", "class_permutation", "batch_permutation"}),
        of_labels=True,
        paper="https://arxiv.org/abs/2308.06453",
        formula=r"\tfrac{T^2}{C} \sum_c \mathrm{KL}\big(\mathrm{Bern}(\sigma(z_t^c / T)) \,\|\, "
        r"\mathrm{Bern}(\sigma(z_s^c / T))\big)",
        values_of="the paper's multi-label logits distillation, divided by the number of labels",
    )

    temperature: Positive = 1.0
    t_squared: bool = True
