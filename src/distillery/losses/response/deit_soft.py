"""Soft distillation through a distillation token (DeiT; Touvron et al., ICML 2021)."""

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from distillery.core.errors import UserError, did_you_mean
from distillery.core.numerics import Reduction
from distillery.losses.heads import HEADS, require_same_classes
from distillery.losses.response.kd import kd
from distillery.losses.signals import Signals
from distillery.losses.term import Contract, Layers, Term, require_positive

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
    divides that by the number of classes too (`.numel()`), so that the loss is C times smaller: 1000 on ImageNet.

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
    _require_variant(variant)
    value = kd(student_logits, teacher_logits, temperature, t_squared=t_squared, reduction=reduction)
    return value / student_logits.shape[-1] if variant == "source" else value


def _require_variant(variant: str) -> None:
    if variant not in get_args(Variant):
        raise UserError(f"deit_soft has no variant {variant!r}.{did_you_mean(variant, get_args(Variant))}")


class DeiTSoft(Term):
    """`deit_soft` on pairs of heads, summed; by default the student's distillation head and the teacher's head."""

    contract = Contract(
        short_name="deit_soft",
        family="response",
        form="divergence",
        per_sample=True,
        t_squared=True,
        reduction="sum over classes, mean over rows, sum over pairs of heads",
        scale="1 to 10 at T = 3 with an untrained student; variant=source: C times less",
        needs="vectors",
        properties=frozenset({"non_negative", "batch_permutation"}),
        paper="https://arxiv.org/abs/2012.12877",
        formula=r"T^2 \, \mathrm{KL}\big(p_T(z_t) \,\|\, p_T(z_{\mathrm{dist}})\big)",
        values_of="the paper, equation 2; variant=source: DeiT's code",
    )

    def __init__(
        self,
        weight: float = 1.0,
        teacher: str = "main",
        layers: Layers | None = None,
        temperature: float = 3.0,
        t_squared: bool = True,
        variant: Variant = "paper",
    ) -> None:
        super().__init__(weight, teacher, layers or HEADS)
        require_positive(temperature=temperature)
        _require_variant(variant)
        self.temperature = temperature
        self.t_squared = t_squared
        self.variant = variant

    def build(self, student: Mapping[str, torch.Size], teacher: Mapping[str, torch.Size]) -> None:
        require_same_classes(self.pairs(student, teacher))

    def forward(self, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
        return torch.stack(
            [
                deit_soft(s, t, self.temperature, self.t_squared, self.variant, reduction="none")
                for s, t in self.features(student, teacher)
            ]
        ).sum(0)
