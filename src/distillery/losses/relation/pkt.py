"""Probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018)."""

import torch
from torch import Tensor

from distillery.core.numerics import at_least_float32, full_precision
from distillery.losses.layer_terms import RelationTerm, require_same_batch
from distillery.losses.term import Contract

EPS = 1e-7  # added to norms and probabilities, as by the authors


def pkt(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """KL between teacher's and student's probability that one sample is a neighbour of another, over B² pairs.

    That probability is (1 + cosine) / 2 over its sum in the row, the sample itself included (equations 3, 4 and 6).
    A sample whose features are all 0 has the cosine 0 with every other.

    Args:
        student_features: [B,...], flattened to vectors; the widths may differ.
        teacher_features: [B,...].

    Returns: a scalar, the mean over B² pairs of p log(p / q): the mean KL of a row over B.

    Paper: Learning Deep Representations with Probabilistic Knowledge Transfer, https://arxiv.org/abs/1803.10837.
    Values equal those of RepDistiller, by the authors.
    """
    require_same_batch(student_features, teacher_features)
    with full_precision(student_features):
        student, teacher = _neighbourhood(student_features), _neighbourhood(teacher_features)
        gap = torch.log(teacher + EPS) - torch.log(student + EPS)
        return (teacher * gap).sum() / max(teacher.numel(), 1)


def _neighbourhood(features: Tensor) -> Tensor:
    """[B,B], each row a distribution."""
    vectors = at_least_float32(features.flatten(1))
    norm = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    unit = vectors / (norm.masked_fill(norm == 0, torch.inf) + EPS)  # no gradient of 1e7 at 0
    similarity = ((unit @ unit.mT + 1) / 2).clamp_min(0)  # rounding leaves opposite vectors below
    return similarity / similarity.sum(1, keepdim=True)


class PKT(RelationTerm, function=pkt):
    """`pkt` on pairs of layers, summed. It compares the samples of one batch."""

    contract = Contract(
        short_name="pkt",
        per_sample=False,
        reduction="mean over pairs of the batch, sum over pairs of layers",
        scale="0.00001 to 0.001, smaller with a larger batch",
        needs="vectors",
        properties=frozenset({"non_negative", "batch_permutation"}),
        paper="https://arxiv.org/abs/1803.10837",
        formula=r"\tfrac{1}{B^2} \sum_{ij} p^t_{ij} \log \tfrac{p^t_{ij}}{p^s_{ij}},"
        r" \quad p_{ij} \propto 1 + \cos(f_i, f_j)",
        values_of="RepDistiller",
    )
