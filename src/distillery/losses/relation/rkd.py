"""Relational knowledge distillation: distances and angles between samples (Park et al., CVPR 2019)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from distillery.core.numerics import at_least_float32
from distillery.losses.layer_terms import RelationTerm, require_same_batch
from distillery.losses.term import Contract


def rkd(
    student_features: Tensor, teacher_features: Tensor, distance_weight: float = 25.0, angle_weight: float = 50.0
) -> Tensor:
    """Smooth L1 between student's and teacher's distances of pairs, and between their cosines of triplets.

    Distances are divided by the batch's mean distance (equation 4); the cosine is that of the angle at one
    sample between two others (equation 7). Samples that coincide have no angle (0, no gradient). Fewer
    than two samples have no relation (0). Time and memory for the angles grow with B³.

    Args:
        student_features: [B,...], flattened to vectors; the widths may differ.
        teacher_features: [B,...].
        distance_weight: weight of the distances.
        angle_weight: weight of the angles.

    Returns: a scalar, the weighted sum of the means over B² pairs and B³ triplets.

    Paper: Relational Knowledge Distillation, https://arxiv.org/abs/1904.05068. Values equal those of RepDistiller.
    """
    require_same_batch(student_features, teacher_features)
    student, teacher = _relative_distances(student_features), _relative_distances(teacher_features)
    loss = distance_weight * _mean_gap(student, teacher)
    if angle_weight:
        loss = loss + angle_weight * _mean_gap(_cosines(student), _cosines(teacher))
    return loss


def _relative_distances(features: Tensor) -> Tensor:
    """Euclidean distances over their mean, [B,B]; the gradient of a distance of 0 is 0."""
    vectors = at_least_float32(features.flatten(1))
    # From differences: the Gram matrix loses close neighbours to cancellation, and to TF32.
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / max(len(vectors) * (len(vectors) - 1), 1)
    return distances / mean.clamp_min(torch.finfo(mean.dtype).tiny)


def _cosines(distances: Tensor) -> Tensor:
    """Cosine of the angle at v between a and b, [v,a,b], by the law of cosines; 0 where an arm has no length.

    From the distances, since differences of vectors would take B² · D memory and B³ · D time.
    """
    has_length = distances > torch.finfo(distances.dtype).eps
    inverse = distances.masked_fill(~has_length, torch.inf).reciprocal()
    squares = distances.square()
    numerator = squares.unsqueeze(2) + squares.unsqueeze(1) - squares
    return 0.5 * numerator * inverse.unsqueeze(2) * inverse.unsqueeze(1)


def _mean_gap(student: Tensor, teacher: Tensor) -> Tensor:
    return F.smooth_l1_loss(student, teacher, reduction="sum") / max(student.numel(), 1)


class RKD(RelationTerm, function=rkd):
    """`rkd` on pairs of layers, summed. It compares the samples of one batch."""

    contract = Contract(
        short_name="rkd",
        per_sample=False,
        reduction="mean over pairs and over triplets of the batch, sum over pairs of layers",
        scale="0.1 to 5 with the weights 25 and 50",
        needs="vectors",
        properties=frozenset({"non_negative", "batch_permutation", "symmetric"}),
        paper="https://arxiv.org/abs/1904.05068",
        formula=r"\lambda_d \, \ell_1\big(\tfrac{d_s}{\bar d_s}, \tfrac{d_t}{\bar d_t}\big)"
        r" + \lambda_a \, \ell_1(\cos\angle_s, \cos\angle_t)",
        values_of="RepDistiller",
    )

    distance_weight: float = 25.0
    angle_weight: float = 50.0
