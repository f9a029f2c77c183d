"""Masked generative distillation (Yang et al., ECCV 2022)."""

from collections.abc import Callable, Mapping
from dataclasses import field
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from distillery.core.numerics import Reduction, at_least_float32, comparable_maps, reduce_rows
from distillery.core.random import uniforms
from distillery.losses.layer_terms import ProjectedTerm
from distillery.losses.projectors import run
from distillery.losses.settings import Fraction
from distillery.losses.signals import Signals
from distillery.losses.steps import Steps
from distillery.losses.term import Contract

Variant = Literal["spatial", "channel"]
STREAM = -1  # the `view` of these random numbers; those from 0 on belong to augmentation


def mgd(
    student_features: Tensor,
    teacher_features: Tensor,
    keep: Tensor,
    generation: Callable[[Tensor], Tensor],
    reduction: Reduction = "mean",
) -> Tensor:
    """Sum of squared errors between the teacher's features and those generated from the masked student's.

    Args:
        student_features: [B,C,H,W], already of the teacher's width. If the sizes differ, the larger map is
            average-pooled.
        teacher_features: the same shape, except for H and W.
        keep: 0 where the student is masked, else 1; broadcasts to [B,C,H,W] (equations 1 and 5).
        generation: maps [B,C,H,W] to [B,C,H,W]; trained with the student (equation 2).
        reduction: 'mean' over samples of the sums over elements, or 'none' for each sample's sum: [B].

    Paper: Masked Generative Distillation, https://arxiv.org/abs/2205.01529, equation 4. Values equal those of the
    authors, whose weights of 2e-5 and 7e-5 apply to this sum; Model-Optimizer averages over elements.
    """
    student, teacher = comparable_maps(student_features, teacher_features)
    generated = at_least_float32(generation(student * keep))
    return reduce_rows((generated - teacher).square().flatten(1).sum(1), reduction)


class MGD(ProjectedTerm, function=mgd):
    """`mgd` on pairs of layers, summed, each with its projector and its generation block (3×3, ReLU, 3×3).

    The masks are a pure function of (`seed`, training batch, sample): they are the same in a resumed run and on any
    number of processes. Evaluation uses those of the next training batch.
    """

    auto = "last"
    contract = Contract(
        short_name="mgd",
        form="learned",
        reduction="sum over elements, mean over samples, sum over pairs of layers",
        scale="the mean square of the teacher's features times their number: 100 to 100 000",
        needs="maps",
        properties=frozenset({"non_negative", "batch_permutation"}),
        paper="https://arxiv.org/abs/2205.01529",
        formula=r"\lVert \mathcal{G}(M \odot r(F_s)) - F_t \rVert_2^2",
        values_of="MGD (the authors)",
    )

    variant: Variant = "spatial"
    masked_ratio: Fraction = 0.65
    seed: int = 0
    steps: Steps = field(default_factory=Steps, init=False)

    def build(self, student: Mapping[str, torch.Size], teacher: Mapping[str, torch.Size]) -> None:
        super().build(student, teacher)
        self.generations = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
            for width in map(self.width, self.pairs(student, teacher))
        )

    def forward(self, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
        rows = []
        parts = zip(self.generations, self.features(student, teacher), strict=True)
        for layer, (generation, (s, t)) in enumerate(parts):
            rows.append(self.loss(s, t, self._keep(t, batch["index"], layer), partial(run, generation)))
        self.steps.done += self.training
        return torch.stack(rows).sum(0)

    def _keep(self, features: Tensor, index: Tensor, layer: int) -> Tensor:
        """[B,1,H,W] or, variant 'channel', [B,C,1,1]."""
        batch, width, *size = features.shape
        shape = (batch, 1, *size) if self.variant == "spatial" else (batch, width, 1, 1)
        places = shape[1] * shape[2] * shape[3]
        draw = uniforms(self.seed, self.steps.done, index, STREAM - layer, places)
        return (draw >= self.masked_ratio).to(features.dtype).view(shape)
