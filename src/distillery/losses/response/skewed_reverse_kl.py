"""Skewed reverse Kullback-Leibler divergence (DistiLLM; Ko et al., ICML 2024)."""

from dataclasses import replace

from torch import Tensor

from distillery.core.numerics import Reduction, require_same_shape
from distillery.losses.response.skewed_kl import SkewedKL, skewed_kl


def skewed_reverse_kl(
    student_logits: Tensor, teacher_logits: Tensor, lam: float = 0.1, reduction: Reduction = "mean"
) -> Tensor:
    """KL(student ‖ λ · student + (1 - λ) · teacher), in nats. It is bounded, whatever the teacher leaves out.

    Args:
        student_logits: [N,C], or [B,L,V] for tokens.
        teacher_logits: the same shape.
        lam: λ, the share of the student in the mixture, from 0 (which is `reverse_kl` at T = 1) to below 1.
        reduction: 'mean' over rows, or 'none' for every row's value: [N] or [B,L].

    Paper: DistiLLM, https://arxiv.org/abs/2402.03898. Values equal those of DistiLLM.
    """
    require_same_shape(student_logits, teacher_logits)  # before the roles are exchanged, for the message
    return skewed_kl(teacher_logits, student_logits, lam, reduction)


class SkewedReverseKL(SkewedKL, function=skewed_reverse_kl):
    """`skewed_reverse_kl` on the rows of logits that count."""

    contract = replace(
        SkewedKL.contract, short_name="srkl", formula=r"\mathrm{KL}\big(p_s \,\|\, \lambda p_s + (1 - \lambda) p_t\big)"
    )
