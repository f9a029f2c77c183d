"""Similarity-preserving knowledge distillation (Tung and Mori, ICCV 2019)."""

from torch import Tensor

from distillery.core.numerics import at_least_float32, full_precision, unit_rows
from distillery.losses.layer_terms import RelationTerm, require_same_batch
from distillery.losses.term import Contract, Layers


def similarity_preserving(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Mean squared difference of the inner products between samples, each row normalised to unit L2 norm.

    A sample whose features are all 0 has a row of zeros (equations 1, 2 and 4).

    Args:
        student_features: [B,...], flattened to vectors; the sizes may differ.
        teacher_features: [B,...].

    Returns: a scalar, the mean over B² pairs.

    Paper: Similarity-Preserving Knowledge Distillation, https://arxiv.org/abs/1907.09682. Values equal
    those of RepDistiller, which the author has verified; torchdistill normalises the rows to unit L1 norm.
    """
    require_same_batch(student_features, teacher_features)
    with full_precision(student_features):
        gap = _similarities(student_features) - _similarities(teacher_features)
        return gap.square().sum() / max(gap.numel(), 1)


def _similarities(features: Tensor) -> Tensor:
    """[B,B]."""
    vectors = at_least_float32(features.flatten(1))
    return unit_rows(vectors @ vectors.mT)


class SimilarityPreserving(RelationTerm, function=similarity_preserving):
    """`similarity_preserving` on pairs of layers, summed. It compares the samples of one batch."""

    auto = "last"
    contract = Contract(
        short_name="sp",
        per_sample=False,
        reduction="mean over pairs of the batch, sum over pairs of layers",
        scale="at most 4 / B, about 0.0001 to 0.001",
        needs="features",
        properties=frozenset({"non_negative", "batch_permutation", "symmetric"}),
        paper="https://arxiv.org/abs/1907.09682",
        formula=r"\tfrac{1}{B^2} \lVert \tilde G_s - \tilde G_t \rVert_F^2,"
        r" \quad G = F F^\top, \ \tilde G_i = \tfrac{G_i}{\lVert G_i \rVert_2}",
        values_of="RepDistiller",
    )

    layers: Layers | None = "auto"
