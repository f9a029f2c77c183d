"""Neuron selectivity transfer (Huang and Wang, 2017)."""

import torch.nn.functional as F
from torch import Tensor

from distillery.core.numerics import Reduction, at_least_float32, full_precision, reduce_rows
from distillery.losses.alignment import align_maps
from distillery.losses.layer_terms import LayerTerm
from distillery.losses.term import Contract


def nst(student_features: Tensor, teacher_features: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Squared maximum mean discrepancy between the sets of channels, under the kernel k(a,b) = (aᵀb)².

    Each channel's map is normalised to unit L2 norm over the positions (equations 3 and 5, the polynomial kernel with d
    = 2 and c = 0).

    Args:
        student_features: [B,C,H,W], or tokens [B,L,C] of a square grid (`as_map`).
        teacher_features: the same; C', H' and W' may differ. The larger map is average-pooled first.
        reduction: 'mean' over samples, or 'none' for each sample's: [B].

    Paper: Like What You Like, https://arxiv.org/abs/1707.01219. Values equal those of RepDistiller.
    """
    maps = align_maps(at_least_float32(student_features), at_least_float32(teacher_features))
    student, teacher = (F.normalize(features.flatten(2), dim=2) for features in maps)
    with full_precision(student):
        rows = _kernel(teacher, teacher) + _kernel(student, student) - 2 * _kernel(student, teacher)
    return reduce_rows(rows, reduction)


def _kernel(first: Tensor, second: Tensor) -> Tensor:
    """The mean of k over all pairs of channels, [B]."""
    return (first @ second.mT).square().mean((1, 2))


class NST(LayerTerm, function=nst):
    """`nst` on pairs of layers, summed."""

    auto = "all"
    one_position = "maps of a single position are all alike"
    contract = Contract(
        short_name="nst",
        reduction="mean over pairs of channels and samples, sum over pairs of layers",
        scale="at most 2 a pair, about 0.01 to 0.2",
        needs="maps",
        properties=frozenset({"non_negative", "batch_permutation", "symmetric"}),
        paper="https://arxiv.org/abs/1707.01219",
        formula=r"\overline{k(t, t')} + \overline{k(s, s')} - 2\, \overline{k(s, t)},"
        r" \quad k(a, b) = \left( \tfrac{a^\top b}{\lVert a \rVert \lVert b \rVert} \right)^2",
        values_of="RepDistiller",
    )
