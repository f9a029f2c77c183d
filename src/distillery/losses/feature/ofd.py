"""A comprehensive overhaul of feature distillation (Heo et al., ICCV 2019)."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from annotated_types import Gt, Le
from torch import Tensor

from distillery.core.errors import UserError
from distillery.core.kinds import Says
from distillery.core.numerics import Reduction, at_least_float32, comparable_maps, reduce_rows
from distillery.losses.alignment import channels
from distillery.losses.connector import Connectors, halved_each_layer_down
from distillery.losses.signals import Signals
from distillery.losses.term import Contract, Layers, Term

Margin = Annotated[
    Annotated[float, Gt(-math.inf), Le(0)] | Literal["batch", "bn"], Says("a finite number not above 0, batch or bn")
]


def ofd(
    student_features: Tensor, teacher_features: Tensor, margin: float | Tensor, reduction: Reduction = "mean"
) -> Tensor:
    """Partial squared distance to the teacher behind a margin ReLU, max(t, margin), summed over elements.

    If that target is not positive, only a student above it has a loss (equations 2 and 5): below it, both are off.

    Args:
        student_features: [B,C,H,W] before the activation, after the connector. If the sizes differ, the larger map is
            average-pooled.
        teacher_features: [B,C,H',W'] before the activation. After a ReLU nothing is below 0, and the margin has no
            effect.
        margin: at most 0; one number, or one for each channel: [C].
        reduction: 'mean' over samples of the sums over elements, or 'none' for each sample's sum: [B].

    Paper: A Comprehensive Overhaul of Feature Distillation, https://arxiv.org/abs/1904.01866. Values equal those of
    mdistiller, by the authors.
    """
    student, teacher = comparable_maps(student_features, teacher_features)
    floor = at_least_float32(torch.as_tensor(margin, dtype=student.dtype, device=student.device)).view(-1, 1, 1)
    target = teacher.maximum(floor)
    counts = (student > target) | (target > 0)
    return reduce_rows((student - target).square().masked_fill(~counts, 0.0).flatten(1).sum(1), reduction)


def ofd_bn_margin(weight: Tensor, bias: Tensor) -> Tensor:
    """The mean negative output of a BatchNorm, for each channel: [C], in at least float32.

    E[x | x < 0] of a normal distribution with mean `bias` and standard deviation |`weight`|; -3 |`weight`| if the
    probability of a negative value is at most 0.001.

    Args:
        weight: [C], of the BatchNorm.
        bias: [C], of the BatchNorm.

    Paper: https://arxiv.org/abs/1904.01866, section 3.2. Values equal the authors'. The ratio of density and
    probability is computed in log space.
    """
    mean, deviation = at_least_float32(bias), at_least_float32(weight).abs()
    position = mean / deviation
    log_negative = torch.special.log_ndtr(-position)
    log_density = -0.5 * position.square() - 0.5 * math.log(2 * math.pi)
    expected = mean - deviation * (log_density - log_negative).exp()
    return torch.where(log_negative > math.log(0.001), expected, -3 * deviation)


def ofd_batch_margin(teacher_features: Tensor) -> Tensor:
    """The mean of the negative values of each channel of [B,C,H,W]: [C]; 0 if a channel has none.

    Paper: https://arxiv.org/abs/1904.01866, equation 3, measured on one batch.
    """
    teacher = at_least_float32(teacher_features)
    return teacher.clamp_max(0).sum((0, 2, 3)) / (teacher < 0).sum((0, 2, 3)).clamp_min(1)


class OFD(Term):
    """`ofd` on pairs of layers, each behind a connector. Of n pairs, the i-th has the weight 2^(i - n).

    Choose layers before their ReLU (`act2:input`, or a BatchNorm). The margin is measured on each batch, or computed
    from the teacher's BatchNorms as in the authors' code; the teacher's layers must then be BatchNorms.
    """

    auto = "all"
    before_activation = True
    contract = Contract(
        short_name="ofd",
        reduction="sum over elements, mean over samples, sum over pairs of layers, halved each layer down",
        scale="the mean square of the teacher's positive features, a neuron: 100 to 10 000",
        needs="maps",
        properties=frozenset({"non_negative", "batch_permutation"}),
        paper="https://arxiv.org/abs/1904.01866",
        formula=r"\sum_i \left[ r(F_s) > \hat F_t \text{ or } \hat F_t > 0 \right]_i (r(F_s) - \hat F_t)_i^2,"
        r" \quad \hat F_t = \max(F_t, m_c)",
        values_of="mdistiller",
    )

    layers: Layers | None = "auto"
    projector: str | None = "auto"
    margin: Margin = "batch"

    @property
    def teacher_taps(self) -> list[str]:
        parameters = [f"{tap}:{part}" for tap in self.taps.values() for part in ("weight", "bias")]
        return super().teacher_taps + (parameters if self.margin == "bn" else [])

    def build(self, student: Mapping[str, torch.Size], teacher: Mapping[str, torch.Size]) -> None:
        pairs = self.pairs(student, teacher)
        self.connectors = Connectors(self.projector, pairs)
        for pair in pairs:
            if self.margin == "bn" and teacher[f"{pair.teacher_tap}:weight"] != (channels(pair.teacher),):
                raise UserError(
                    f"margin=bn: the teacher's layer {pair.teacher_tap!r} is not a BatchNorm. "
                    "Name BatchNorms in `layers`, or set margin=batch."
                )

    def forward(self, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
        connected = zip(self.taps.values(), self.connectors(self.features(student, teacher)), strict=True)
        rows = [ofd(s, t, self._margin(teacher, tap, t), reduction="none") for tap, (s, t) in connected]
        return halved_each_layer_down(rows)

    def _margin(self, teacher: Signals, tap: str, features: Tensor) -> float | Tensor:
        if self.margin == "bn":
            return ofd_bn_margin(teacher.layers[f"{tap}:weight"], teacher.layers[f"{tap}:bias"])
        return ofd_batch_margin(features) if self.margin == "batch" else self.margin
