"""Class attention transfer (Guo et al., CVPR 2023)."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from distillery.core.errors import UserError
from distillery.core.numerics import (
    Reduction,
    at_least_float32,
    full_precision,
    reduce_rows,
    require_same_shape,
    unit_rows,
)
from distillery.losses.settings import PositiveInt
from distillery.losses.signals import Signals
from distillery.losses.term import Contract, Layers, Term

WEIGHT = "head:weight"


def cat(
    student_features: Tensor,
    teacher_features: Tensor,
    resolution: int = 2,
    normalize: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    """Mean squared difference of class activation maps, each pooled and normalised to unit L2 norm over its positions.

    Args:
        student_features: [B,K,H,W], one map for each class.
        teacher_features: [B,K,H',W'].
        resolution: average-pool the maps to this height and width.
        normalize: to unit norm, as in the paper. The authors' recipes that add this loss to the task loss do not.
        reduction: 'mean' over samples, classes and positions, or 'none' for the mean of each sample's: [B].

    Paper: Class Attention Transfer Based Knowledge Distillation, https://arxiv.org/abs/2304.12777. Values equal
    those of the authors' code. Maps that are 0 everywhere have no direction (0, no gradient).
    """
    student, teacher = (
        F.adaptive_avg_pool2d(at_least_float32(maps), resolution).flatten(2)
        for maps in (student_features, teacher_features)
    )
    require_same_shape(student, teacher)
    if normalize:
        student, teacher = unit_rows(student), unit_rows(teacher)
    return reduce_rows((student - teacher).square().mean((1, 2)), reduction)


class CAT(Term, function=cat):
    """`cat` of the class maps: each network's own classifier, applied at every position of its last map.

    `layers` names one pair: the maps whose means over positions go into the heads. The authors move the classifier
    before the pooling, which leaves the logits unchanged; its bias plays no role here. Without `normalize`, as in the
    recipes behind their table of results, the class maps keep the scale of the logits.
    """

    auto = "pooled"
    own_student_taps = own_teacher_taps = (WEIGHT,)
    contract = Contract(
        short_name="cat",
        reduction="mean over classes, positions and samples",
        scale="the mean square of the teacher's logits, 5 to 50; with normalize about 0.1 to 0.5",
        needs="maps",
        properties=frozenset({"non_negative", "batch_permutation", "symmetric"}),
        paper="https://arxiv.org/abs/2304.12777",
        formula=r"\tfrac{1}{n} \sum_k \lVert A^s_k - A^t_k \rVert_2^2,"
        r" \quad A_k = \mathrm{pool}\left(\sum_c w_{kc} F_c\right)",
        values_of="CAT-KD (the authors)",
    )

    layers: Layers | None = "auto"
    resolution: PositiveInt = 2
    normalize: bool = False

    def build(self, student: Mapping[str, torch.Size], teacher: Mapping[str, torch.Size]) -> None:
        pairs = self.pairs(student, teacher)
        if len(pairs) != 1:
            raise UserError(f"cat compares one pair of layers, and `layers` names {len(pairs)}. Name one.")
        for role, tap, shape, head in (
            ("student", pairs[0].student_tap, pairs[0].student, student[WEIGHT]),
            ("teacher", pairs[0].teacher_tap, pairs[0].teacher, teacher[WEIGHT]),
        ):
            if len(shape) != 4 or shape[1] != head[1] or shape[2] * shape[3] == 1:
                raise UserError(
                    f"cat applies the {role}'s classifier {list(head)} at each position of its layer {tap!r}, whose "
                    f"shape is {list(shape)}. Name the map [B,{head[1]},H,W] that is averaged before the classifier."
                )

    def forward(self, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
        ((s, t),) = self.features(student, teacher)
        return self.loss(_class_maps(s, student.layers[WEIGHT]), _class_maps(t, teacher.layers[WEIGHT]))


def _class_maps(features: Tensor, weight: Tensor) -> Tensor:
    """[B,C,H,W] and [K,C] → [B,K,H,W]."""
    with full_precision(features):
        # bmm, because `@` sums in another order if a gradient is needed, and so differs between student and teacher
        maps = at_least_float32(weight).expand(len(features), -1, -1).bmm(at_least_float32(features).flatten(2))
    return maps.unflatten(2, features.shape[2:])
