"""Inter-channel correlation for knowledge distillation (Liu et al., ICCV 2021)."""

from typing import Literal

from torch import Tensor

from distillery.core.kinds import conform
from distillery.core.numerics import Reduction, at_least_float32, full_precision, reduce_rows, unit_rows
from distillery.losses.layer_terms import ProjectedTerm
from distillery.losses.term import Contract

Variant = Literal["author", "paper"]


def ickd(
    student_features: Tensor, teacher_features: Tensor, variant: Variant = "author", reduction: Reduction = "mean"
) -> Tensor:
    """Difference of the C² inner products between the channels of one sample.

    - 'author': each channel's row of inner products is normalised to unit L2 norm. The squared differences are summed
      over both channels and divided by C. A channel that is 0 everywhere has a row of zeros.
    - 'paper': the mean over C² of the squared differences of the inner products themselves. They grow with
      the fourth power of the features and with the square of the number of positions.

    Args:
        student_features: [B,C,H,W], already of the teacher's number of channels.
        teacher_features: [B,C,H',W'].
        variant: 'author' (the published code) or 'paper'.
        reduction: 'mean' over samples, or 'none' for each sample's: [B].

    Paper: Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation,
    https://arxiv.org/abs/2202.03680, ICKD-C. The grid-level form for dense prediction is not included.
    """
    conform("variant", variant, Variant)
    if student_features.shape[:2] != teacher_features.shape[:2]:
        raise ValueError(
            f"student {list(student_features.shape)} and teacher {list(teacher_features.shape)} differ in samples or "
            "channels"
        )
    with full_precision(student_features):
        student, teacher = _correlations(student_features), _correlations(teacher_features)
        if variant == "author":
            rows = (unit_rows(student) - unit_rows(teacher)).square().sum(2).mean(1)
        else:
            rows = (student - teacher).square().mean((1, 2))
    return reduce_rows(rows, reduction)


def _correlations(features: Tensor) -> Tensor:
    """[B,C,C]."""
    channels = at_least_float32(features.flatten(2))
    return channels @ channels.mT


class ICKD(ProjectedTerm, function=ickd):
    """`ickd` on pairs of layers, summed, each student layer behind its own projector.

    The authors' projector is a 1×1 convolution followed by a BatchNorm; here it is the convolution alone.
    """

    auto = "last"
    contract = Contract(
        short_name="ickd",
        reduction="sum over one channel, mean over the other and over samples, sum over pairs of layers",
        scale="at most 4, about 0.1 to 1 at first",
        needs="maps",
        properties=frozenset({"non_negative", "batch_permutation", "symmetric"}),
        paper="https://arxiv.org/abs/2202.03680",
        formula=r"\tfrac{1}{C} \lVert \tilde G_s - \tilde G_t \rVert_F^2,"
        r" \quad G = F F^\top \in \mathbb{R}^{C \times C}, \ \tilde G_c = \tfrac{G_c}{\lVert G_c \rVert_2}",
        values_of="ICKD (the authors)",
    )

    variant: Variant = "author"
