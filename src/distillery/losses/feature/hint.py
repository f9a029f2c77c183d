"""Hints: regression of a teacher's intermediate features (FitNets; Romero et al., ICLR 2015)."""

import torch.nn.functional as F
from torch import Tensor

from distillery.core.numerics import Reduction, comparable_maps, reduce_rows
from distillery.losses.layer_terms import ProjectedTerm
from distillery.losses.term import Contract


def hint(student_features: Tensor, teacher_features: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Mean squared error between features already projected to the teacher's width (equation 3).

    Args:
        student_features: [B,C,H,W], [B,L,D] or [B,D]. If the sizes of maps differ, the larger one is
            average-pooled.
        teacher_features: the same shape, except for H and W.
        reduction: 'mean' over all elements, or 'none' for the mean of each sample's: [B].

    Paper: FitNets, https://arxiv.org/abs/1412.6550. Values equal those of RepDistiller.
    """
    student, teacher = comparable_maps(student_features, teacher_features)
    return reduce_rows(F.mse_loss(student, teacher, reduction="none").flatten(1).mean(1), reduction)


class Hint(ProjectedTerm, function=hint):
    """`hint` on pairs of layers, summed, each student layer behind its own projector and then aligned (`align`)."""

    auto = "middle"
    contract = Contract(
        short_name="hint",
        reduction="mean over elements, sum over pairs of layers",
        scale="the variance of the teacher's features, about 0.01 to 1",
        needs="features",
        properties=frozenset({"non_negative", "batch_permutation", "symmetric"}),
        paper="https://arxiv.org/abs/1412.6550",
        formula=r"\tfrac{1}{n} \lVert r(F_s) - F_t \rVert_2^2",
        values_of="RepDistiller",
    )
