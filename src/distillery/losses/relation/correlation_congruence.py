"""Correlation congruence for knowledge distillation (Peng et al., ICCV 2019)."""

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from distillery.core.kinds import conform
from distillery.core.numerics import at_least_float32, full_precision, require_same_shape, unit_rows
from distillery.losses.alignment import align
from distillery.losses.layer_terms import RelationTerm, require_same_batch
from distillery.losses.projectors import make_projector, run
from distillery.losses.settings import Positive, PositiveInt
from distillery.losses.signals import Signals
from distillery.losses.term import Contract

Variant = Literal["author", "gaussian"]


def correlation_congruence(
    student_features: Tensor, teacher_features: Tensor, variant: Variant = "author", gamma: float = 0.4, p: int = 2
) -> Tensor:
    """Difference of the relations between samples: of neighbours in the batch, or of a matrix of correlations.

    - 'author': the mean, over the B - 1 pairs of consecutive samples, of Σ |Δ_i| |Δ_{i+1}|, with Δ = student -
      teacher. It is what the authors contributed to RepDistiller, and depends on the order of the batch.
    - 'gaussian': the mean, over B² pairs, of the squared difference of the kernels exp(-gamma ‖x - y‖²) of vectors of
      unit length, each by its Taylor series exp(-2 gamma) Σ (2 gamma x·y)^k / k!, k = 0..p: the paper's equations 4
      to 7. (torchdistill takes the norm instead of its square, and does not normalise the vectors.)

    Args:
        student_features: [B,...], flattened to vectors.
        teacher_features: [B,...]; for 'author' of the same shape.
        variant: 'author' or 'gaussian'. Their values, and so their weights, are not comparable.
        gamma: γ of the Gaussian; not used by 'author'.
        p: order of the Taylor series; not used by 'author'.

    Returns: a scalar.

    Paper: Correlation Congruence for Knowledge Distillation, https://arxiv.org/abs/1904.01802.
    """
    conform("variant", variant, Variant)
    require_same_batch(student_features, teacher_features)
    student, teacher = (at_least_float32(features.flatten(1)) for features in (student_features, teacher_features))
    if variant == "author":
        require_same_shape(student, teacher)
        gap = (student - teacher).abs()
        return (gap[:-1] * gap[1:]).sum() / max(len(gap) - 1, 1)
    with full_precision(student):
        difference = _gaussian(student, gamma, p) - _gaussian(teacher, gamma, p)
        return difference.square().sum() / max(difference.numel(), 1)


def _gaussian(vectors: Tensor, gamma: float, p: int) -> Tensor:
    """[B,B]."""
    unit = unit_rows(vectors)
    exponent = 2 * gamma * unit @ unit.mT
    series = term = torch.ones_like(exponent)
    for order in range(1, p + 1):
        term = term * exponent / order
        series = series + term
    return math.exp(-2 * gamma) * series


class CorrelationCongruence(RelationTerm, function=correlation_congruence):
    """`correlation_congruence` on pairs of layers, summed. The authors' form has a projector.

    RepDistiller projects both student and teacher to 128 channels with trained layers, which can make the loss 0 by
    collapsing to constants; here the teacher's features stay as they are. The Gaussian form needs no projector.
    """

    contract = Contract(
        short_name="cc",
        per_sample=False,
        reduction="sum over channels, mean over consecutive samples (gaussian: over pairs), sum over pairs of layers",
        scale="0.1 to 100, larger with more channels (gaussian: 0.0001 to 0.1)",
        needs="vectors",
        properties=frozenset({"non_negative", "symmetric"}),
        paper="https://arxiv.org/abs/1904.01802",
        formula=r"\tfrac{1}{B - 1} \sum_i \lvert \Delta_i \rvert^\top \lvert \Delta_{i+1} \rvert,"
        r" \quad \Delta = r(f_s) - f_t",
        values_of="RepDistiller",
    )

    projector: str | None = "auto"
    variant: Variant = "author"
    gamma: Positive = 0.4
    p: PositiveInt = 2

    def build(self, student: Mapping[str, torch.Size], teacher: Mapping[str, torch.Size]) -> None:
        super().build(student, teacher)
        pairs = self.pairs(student, teacher) if self.variant == "author" else []
        self.projectors = nn.ModuleList(make_projector(self.projector, pair) for pair in pairs)

    def features(self, student: Signals, teacher: Signals) -> Iterator[tuple[Tensor, Tensor]]:
        features = super().features(student, teacher)
        if self.variant == "gaussian":
            return features
        return (align(run(project, s), t) for project, (s, t) in zip(self.projectors, features, strict=True))
