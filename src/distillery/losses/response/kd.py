"""Knowledge distillation from softened logits (Hinton, Vinyals and Dean, 2015)."""

from torch import Tensor

from distillery.core.numerics import Reduction, kl, log_softmaxes, reduce_rows
from distillery.losses.logit_term import LogitTerm
from distillery.losses.settings import Positive
from distillery.losses.term import Contract


def kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 4.0,
    mask: Tensor | None = None,
    t_squared: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    """KL(teacher ‖ student) of the softened class probabilities, in nats, times T².

    Args:
        student_logits: [N,C], or [B,L,V] for tokens.
        teacher_logits: the same shape.
        temperature: T; both softmaxes are of logits / T.
        mask: [B,L], non-zero where a token counts; the mean is over these.
        t_squared: multiply by T², which keeps the size of the gradient as T changes (section 2 of the paper).
        reduction: 'mean' over rows, or 'none' for every row's value: [N] or [B,L].

    Paper: Distilling the Knowledge in a Neural Network, https://arxiv.org/abs/1503.02531. Values equal
    those of RepDistiller and, with `mask`, of DistilBERT.
    """
    student, teacher = log_softmaxes(student_logits, teacher_logits, temperature)
    rows = kl(teacher, student)
    return reduce_rows(rows * temperature**2 if t_squared else rows, reduction, mask)


class KD(LogitTerm, function=kd):
    """`kd` on the rows of logits that count."""

    contract = Contract(
        short_name="kd",
        scale="1 to 10 at T = 4 with an untrained student",
        paper="https://arxiv.org/abs/1503.02531",
        formula=r"T^2 \, \mathrm{KL}\big(p_T(z_t) \,\|\, p_T(z_s)\big), \quad p_T(z) = \mathrm{softmax}(z / T)",
        values_of="RepDistiller; with a mask DistilBERT",
    )

    temperature: Positive = 4.0
    t_squared: bool = True
