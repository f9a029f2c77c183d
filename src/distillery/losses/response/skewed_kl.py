"""Skewed Kullback-Leibler divergence (DistiLLM; Ko et al., ICML 2024)."""

from torch import Tensor

from distillery.core.numerics import Reduction, kl, log_mix, log_softmaxes, reduce_rows
from distillery.losses.logit_term import LogitTerm
from distillery.losses.settings import Fraction
from distillery.losses.term import Contract


def skewed_kl(
    student_logits: Tensor, teacher_logits: Tensor, lam: float = 0.1, reduction: Reduction = "mean"
) -> Tensor:
    """KL(teacher ‖ λ · teacher + (1 - λ) · student), in nats. It is bounded, whatever the student leaves out.

    Args:
        student_logits: [N,C], or [B,L,V] for tokens.
        teacher_logits: the same shape.
        lam: λ, the share of the teacher in the mixture, from 0 (which is `kd` at T = 1) to below 1.
        reduction: 'mean' over rows, or 'none' for every row's value: [N] or [B,L].

    Paper: DistiLLM, https://arxiv.org/abs/2402.03898. Values equal those of DistiLLM without
    the teacher's entropy: its code computes the cross-entropy, with the same gradient, which is not 0 at agreement.
    """
    student, teacher = log_softmaxes(student_logits, teacher_logits, 1.0)
    return reduce_rows(kl(teacher, log_mix(teacher, student, lam)), reduction)


class SkewedKL(LogitTerm, function=skewed_kl):
    """`skewed_kl` on the rows of logits that count."""

    contract = Contract(
        short_name="skl",
        scale="at most log(1 / λ): 2.3 at λ = 0.1",
        paper="https://arxiv.org/abs/2402.03898",
        formula=r"\mathrm{KL}\big(p_t \,\|\, \lambda p_t + (1 - \lambda) p_s\big)",
        values_of="DistiLLM",
    )

    lam: Fraction = 0.1
