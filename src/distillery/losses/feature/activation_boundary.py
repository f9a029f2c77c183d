"""Distillation of activation boundaries (Heo et al., AAAI 2019)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from distillery.core.numerics import Reduction, comparable_maps, reduce_rows
from distillery.losses.connector import Connectors, halved_each_layer_down
from distillery.losses.settings import Positive
from distillery.losses.signals import Signals
from distillery.losses.term import Contract, Layers, Term

FACTOR = 3 / 1000


def activation_boundary(
    student_features: Tensor,
    teacher_features: Tensor,
    margin: float = 1.0,
    factor: float = FACTOR,
    reduction: Reduction = "mean",
) -> Tensor:
    """Squared hinge loss of student neurons that are not on the teacher's side of 0, times `factor`.

    Σ (s + margin)² where s > -margin and the teacher is off (t ≤ 0), and (s - margin)² where s ≤ margin and it is on
    (equation 4). Features that agree still have a loss if they are within `margin` of 0.

    Args:
        student_features: [B,C,H,W] before the activation, after the connector. If the sizes differ, the larger map is
            average-pooled.
        teacher_features: [B,C,H',W'], before or after a ReLU: only the sign of each feature counts.
        margin: distance from 0 to which a neuron is pushed.
        factor: of the sum; 3/1000 in the authors' code, 1 in torchdistill.
        reduction: 'mean' over samples of the sums over elements, or 'none' for each sample's sum: [B].

    Paper: Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons,
    https://arxiv.org/abs/1811.03233. Values equal those of RepDistiller, by the authors.
    """
    student, teacher = comparable_maps(student_features, teacher_features)
    side = torch.where(teacher > 0, -1.0, 1.0).to(student.dtype)
    miss = (margin + side * student).clamp_min(0)
    return reduce_rows(factor * miss.square().flatten(1).sum(1), reduction)


class ActivationBoundary(Term, function=activation_boundary):
    """`activation_boundary` on pairs of layers behind connectors. Of n pairs, the i-th has the weight 2^(i - n)."""

    auto = "all"
    before_activation = True
    contract = Contract(
        short_name="ab",
        form="learned",
        reduction="sum over elements times 3/1000, mean over samples, sum over pairs of layers, halved each layer down",
        scale="0.003 to 0.006 a neuron: 1 to 100",
        needs="maps",
        properties=frozenset({"non_negative", "batch_permutation"}),
        paper="https://arxiv.org/abs/1811.03233",
        formula=r"\tfrac{3}{1000} \sum_i [F_t > 0]_i\, [m - r(F_s)]_{+,i}^2 + [F_t \le 0]_i\, [m + r(F_s)]_{+,i}^2",
        values_of="RepDistiller",
    )

    layers: Layers | None = "auto"
    projector: str | None = "auto"
    margin: Positive = 1.0
    factor: Positive = FACTOR

    def build(self, student: Mapping[str, torch.Size], teacher: Mapping[str, torch.Size]) -> None:
        self.connectors = Connectors(self.projector, self.pairs(student, teacher))

    def forward(self, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
        connected = self.connectors(self.features(student, teacher))
        return halved_each_layer_down([self.loss(s, t) for s, t in connected])
