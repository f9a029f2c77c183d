"""Knowledge distillation from standardised logits (Sun et al., CVPR 2024)."""

from torch import Tensor

from distillery.core.numerics import Reduction, comparable, kl, log_softmaxes, reduce_rows
from distillery.losses.logit_term import LogitTerm
from distillery.losses.settings import Positive
from distillery.losses.term import Contract


def logit_standardized_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 2.0,
    t_squared: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    """`kd` of logits standardised per row: the student is free in the shift and the scale of its logits.

    Args:
        student_logits: [N,C], C ≥ 2.
        teacher_logits: [N,C].
        temperature: T, in standard deviations; both softmaxes are of standardised logits / T.
        t_squared: multiply by T².
        reduction: 'mean' over rows, or 'none': [N].

    Paper: Logit Standardization in Knowledge Distillation, https://arxiv.org/abs/2403.01427. Values equal those of
    the authors' code: logits less their mean, over the unbiased standard deviation (divided by C - 1) plus 1e-7. So if
    all logits of a row are equal (a head initialised to zero), the gradient is finite but of the order of 1e7.
    """
    student, teacher = map(_standardized, comparable(student_logits, teacher_logits))
    student, teacher = log_softmaxes(student, teacher, temperature)
    rows = kl(teacher, student)
    return reduce_rows(rows * temperature**2 if t_squared else rows, reduction)


def _standardized(logits: Tensor) -> Tensor:
    # Makes equal logits exactly zero. Otherwise the rounded mean would leave noise, standardised to deviation 1.
    logits = logits - logits.detach().amax(-1, keepdim=True)
    return (logits - logits.mean(-1, keepdim=True)) / (logits.std(-1, keepdim=True) + 1e-7)


class LogitStandardizedKD(LogitTerm, function=logit_standardized_kd):
    """`logit_standardized_kd` on the rows of logits that count."""

    contract = Contract(
        short_name="lskd",
        scale="about 1 with an untrained student",
        paper="https://arxiv.org/abs/2403.01427",
        formula=r"T^2 \, \mathrm{KL}\big(p_T(\tilde z_t) \,\|\, p_T(\tilde z_s)\big),"
        r" \quad \tilde z = \tfrac{z - \mathrm{mean}(z)}{\mathrm{std}(z) + 10^{-7}}",
        values_of="logit-standardization-KD",
    )

    temperature: Positive = 2.0
    t_squared: bool = True
