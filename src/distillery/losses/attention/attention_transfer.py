"""Attention transfer: where a network is active (Zagoruyko and Komodakis, ICLR 2017)."""

import torch.nn.functional as F
from torch import Tensor

from distillery.core.numerics import Reduction, at_least_float32, reduce_rows
from distillery.losses.alignment import align_maps
from distillery.losses.layer_terms import LayerTerm
from distillery.losses.settings import Positive
from distillery.losses.term import Contract


def attention_transfer(
    student_features: Tensor, teacher_features: Tensor, p: float = 2, reduction: Reduction = "mean"
) -> Tensor:
    """Mean squared difference of the spatial attention maps, each normalised to unit L2 norm over its H·W positions.

    Args:
        student_features: [B,C,H,W], or tokens [B,L,C] of a square grid (`as_map`).
        teacher_features: the same; C', H' and W' may differ. The larger map is average-pooled first.
        p: the attention of a position is the mean over channels of |feature| to this power.
        reduction: 'mean' over samples and positions, or 'none' for the mean of each sample's: [B].

    Paper: Paying More Attention to Attention, https://arxiv.org/abs/1612.03928. Values equal those of
    RepDistiller, which averages squares where the paper's equation 2 takes the norm: weights are not interchangeable.
    """
    student, teacher = align_maps(at_least_float32(student_features), at_least_float32(teacher_features))
    gap = F.mse_loss(_attention(student, p), _attention(teacher, p), reduction="none")
    return reduce_rows(gap.mean(1), reduction)


def _attention(features: Tensor, p: float) -> Tensor:
    """[B,H·W]."""
    return F.normalize(features.abs().pow(p).mean(1).flatten(1))


class AttentionTransfer(LayerTerm, function=attention_transfer):
    """`attention_transfer` on pairs of layers, summed."""

    auto = "all"
    one_position = "a single position always has attention 1"
    contract = Contract(
        short_name="at",
        reduction="mean over positions and samples, sum over pairs of layers",
        scale="at most 2 / (H·W) a pair, about 0.0001 to 0.01",
        needs="maps",
        properties=frozenset({"non_negative", "batch_permutation", "symmetric"}),
        paper="https://arxiv.org/abs/1612.03928",
        formula=r"\tfrac{1}{HW} \left\lVert \tfrac{Q_s}{\lVert Q_s \rVert} - \tfrac{Q_t}{\lVert Q_t \rVert}"
        r" \right\rVert^2, \quad Q = \tfrac{1}{C} \sum_c \lvert F^c \rvert^p",
        values_of="RepDistiller",
    )

    p: Positive = 2
