"""Soft distillation through a distillation token (DeiT; Touvron et al., ICML 2021)."""

from typing import Literal

from torch import Tensor

from distillery.core.kinds import conform
from distillery.core.numerics import Reduction
from distillery.losses.heads import HeadTerm
from distillery.losses.response.kd import kd
from distillery.losses.settings import Positive
from distillery.losses.term import Contract

Variant = Literal["paper", "source"]


def deit_soft(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 3.0,
    t_squared: bool = True,
    variant: Variant = "paper",
    reduction: Reduction = "mean",
) -> Tensor:
    """KL(teacher ‖ student's distillation head) of the softened probabilities, in nats, times T².

    The two variants differ in the reduction: 'paper' (equation 2) sums over classes, as `kd`; 'source' (DeiT's code)
    also divides by the number of classes (`.numel()`), which makes the loss C times smaller: 1000 times on ImageNet.

    Args:
        student_logits: [N,C], of the distillation head.
        teacher_logits: [N,C].
        temperature: T.
        t_squared: multiply by T².
        variant: 'paper' or 'source'.
        reduction: 'mean' over rows, or 'none': [N].

    Paper: Training Data-Efficient Image Transformers & Distillation through Attention,
    https://arxiv.org/abs/2012.12877.
    """
    conform("variant", variant, Variant)
    value = kd(student_logits, teacher_logits, temperature, t_squared=t_squared, reduction=reduction)
    return value / student_logits.shape[-1] if variant == "source" else value


class DeiTSoft(HeadTerm, function=deit_soft):
    """`deit_soft` on pairs of heads, summed; by default the student's distillation head and the teacher's head."""

    contract = Contract(
        short_name="deit_soft",
        reduction="sum over classes, mean over rows, sum over pairs of heads",
        scale="1 to 10 at T = 3 with an untrained student; variant=source: C times less",
        needs="vectors",
        properties=frozenset({"non_negative", "batch_permutation"}),
        paper="https://arxiv.org/abs/2012.12877",
        formula=r"T^2 \, \mathrm{KL}\big(p_T(z_t) \,\|\, p_T(z_{\mathrm{dist}})\big)",
        values_of="the paper, equation 2; variant=source: DeiT's code",
    )

    temperature: Positive = 3.0
    t_squared: bool = True
    variant: Variant = "paper"
