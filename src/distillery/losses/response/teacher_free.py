"""Teacher-free distillation from a virtual teacher (Tf-KD_reg; Yuan et al., CVPR 2020)."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from distillery.core.kinds import Says, conform
from distillery.core.numerics import Reduction, kl, log_softmax, one_hot, reduce_rows
from distillery.losses.settings import Positive
from distillery.losses.signals import Signals
from distillery.losses.term import Contract, Term, hard_target

Variant = Literal["paper", "source"]


def teacher_free(
    student_logits: Tensor,
    target: Tensor,
    correct_probability: float = 0.99,
    temperature: float = 20.0,
    t_squared: bool = True,
    variant: Variant = "paper",
    reduction: Reduction = "mean",
) -> Tensor:
    """KL(virtual teacher ‖ student), in nats: a control without a teacher.

    The virtual teacher is always right and knows nothing else. Its probability is a for the label and (1 - a) / (C - 1)
    for every other class, softened by T. The two variants soften differently:

    - 'paper' (section 5): teacher ∝ a^(1/T) for the label, as if its logits were these log-probabilities. The
      student is softened too. Times T², as in the authors' other losses, though the equation has none.
    - 'source' (the authors' code): the probabilities are used as logits, softmax(p / T), which is almost uniform at
      T = 20. The student is not softened, so there is no T². The code averages over rows *and* classes and multiplies
      by its `multiplier`; with a multiplier of C (100 on CIFAR-100) that equals the mean over rows here.

    Args:
        student_logits: [N,C], C ≥ 2.
        target: [N], class indices.
        correct_probability: a, between 0 and 1.
        temperature: T.
        t_squared: multiply by T² (variant 'paper').
        variant: 'paper' or 'source'.
        reduction: 'mean' over rows, or 'none': [N].

    Paper: Revisiting Knowledge Distillation via Label Smoothing Regularization, https://arxiv.org/abs/1909.11723.
    """
    conform("variant", variant, Variant)
    classes = student_logits.shape[-1]
    wrong_probability = (1 - correct_probability) / max(classes - 1, 1)
    softened = variant == "paper"
    student = log_softmax(student_logits, temperature if softened else 1.0)
    right, wrong = (
        student.new_full((), math.log(p) if softened else p) for p in (correct_probability, wrong_probability)
    )
    teacher = log_softmax(torch.where(one_hot(target, classes), right, wrong), temperature)
    rows = kl(teacher, student)
    return reduce_rows(rows * temperature**2 if t_squared and softened else rows, reduction)


class TeacherFree(Term, function=teacher_free):
    """`teacher_free` on the rows of logits that count. It reads labels, and nothing of the teacher."""

    contract = Contract(
        short_name="tfkd",
        reads_labels=True,
        form="cross_entropy",
        scale="0.5 (100 classes) to 4 (10 classes) with an untrained student",
        paper="https://arxiv.org/abs/1909.11723",
        formula=(
            r"T^2 \, \mathrm{KL}\big(p^d_T \,\|\, p_T(z_s)\big), \quad "
            r"p^d(k) = a \ \text{if}\ k = y, \ \tfrac{1-a}{C-1} \ \text{else}"
        ),
        values_of="the paper, section 5, times T²; variant=source: the authors' code",
    )

    correct_probability: Annotated[float, Gt(0), Lt(1), Says("greater than 0 and below 1")] = 0.99
    temperature: Positive = 20.0
    t_squared: bool = True
    variant: Variant = "paper"

    @property
    def needs_logits(self) -> bool:
        return False

    def forward(self, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
        """[N]. Raises UserError without hard labels."""
        return self.loss(student.logits, hard_target(batch, self.name))
