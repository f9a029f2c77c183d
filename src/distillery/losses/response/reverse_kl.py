"""Reverse Kullback-Leibler divergence, which seeks the teacher's modes (MiniLLM; Gu et al., ICLR 2024)."""

from torch import Tensor

from distillery.core.numerics import Reduction, require_same_shape
from distillery.losses.logit_term import LogitTerm
from distillery.losses.response.kd import kd
from distillery.losses.settings import Positive
from distillery.losses.term import Contract


def reverse_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    t_squared: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """KL(student ‖ teacher) of the softened class probabilities, in nats.

    Args:
        student_logits: [N,C], or [B,L,V] for tokens.
        teacher_logits: the same shape.
        temperature: T; both softmaxes are of logits / T.
        t_squared: multiply by T².
        reduction: 'mean' over rows, or 'none' for every row's value: [N] or [B,L].

    Paper: MiniLLM, https://arxiv.org/abs/2306.08543, whose objective this is for single tokens, without its policy
    gradient. Values equal those of DistiLLM, which has no T.
    """
    require_same_shape(student_logits, teacher_logits)  # before the roles are exchanged, for the message
    return kd(teacher_logits, student_logits, temperature, t_squared=t_squared, reduction=reduction)


class ReverseKL(LogitTerm, function=reverse_kl):
    """`reverse_kl` on the rows of logits that count."""

    contract = Contract(
        short_name="rkl",
        scale="1 to 10 with an untrained student; more where the teacher is certain",
        paper="https://arxiv.org/abs/2306.08543",
        formula=r"\mathrm{KL}\big(p_T(z_s) \,\|\, p_T(z_t)\big), \quad p_T(z) = \mathrm{softmax}(z / T)",
        values_of="DistiLLM",
    )

    temperature: Positive = 1.0
    t_squared: bool = False
