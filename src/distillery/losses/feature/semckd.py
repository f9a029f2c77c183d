"""Cross-layer distillation with semantic calibration (Chen et al., AAAI 2021)."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.core.numerics import Reduction, at_least_float32, full_precision, reduce_rows, unit_rows
from distillery.losses.alignment import align, align_maps, channels
from distillery.losses.bottleneck import bottleneck
from distillery.losses.projectors import aligned, make_projector, run
from distillery.losses.settings import Positive, PositiveInt
from distillery.losses.signals import Signals
from distillery.losses.term import Contract, Layers, Pair, Term

BOTTLENECK = "bottleneck"


def semckd(
    query: Tensor, key: Tensor, distances: Tensor, softness: float = 1.0, reduction: Reduction = "mean"
) -> Tensor:
    """Attention-weighted distances of each student layer to all teacher layers, averaged over the student layers.

    Args:
        query: [B,S,D], of each sample in each of S student layers.
        key: [B,T,D], of each sample in each of T teacher layers.
        distances: [B,S,T], mean squared errors between the layers' features.
        softness: divides the products of queries and keys before the softmax over the teacher layers.
        reduction: 'mean' over samples, or 'none': [B].

    Paper: Cross-Layer Distillation with Semantic Calibration, https://arxiv.org/abs/2012.03236. Values equal those of
    the authors' code.
    """
    with full_precision(query):
        attention = (at_least_float32(query) @ at_least_float32(key).mT / softness).softmax(-1)
    return reduce_rows((attention * at_least_float32(distances)).sum(2).mean(1), reduction)


class Embedding(nn.Module):
    """Maps a sample's similarities to the samples of its batch to a unit vector."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.width_in = width_in
        self.layers = nn.Sequential(nn.Linear(width_in, 2 * width_out), nn.ReLU(), nn.Linear(2 * width_out, width_out))

    def forward(self, features: Tensor) -> Tensor:
        """[B,...] → [B, width_out]."""
        vectors = at_least_float32(features).flatten(1)
        with full_precision(vectors):
            similar = vectors @ vectors.mT
        embedded: Tensor = run(self.layers, F.pad(similar, (0, self.width_in - len(vectors))))
        return unit_rows(at_least_float32(embedded))


class SemCKD(Term, function=semckd):
    """`semckd`: every student layer of `layers` learns from every teacher layer, with a projector for each pair.

    A sample's query and key are computed from its row of the batch's similarity matrix, so their layers are as wide as
    a batch. A smaller batch is padded with zeros; the authors drop it.

    Args:
        projector: 'bottleneck', the authors' (1×1, 3×3, 1×1), or a kind of `make_projector`.
        teacher_layers: teacher layers in addition to those of `layers`; 'auto': all stages.
        batch_size: size of the largest batch. None: filled in from the data.
        factor: queries and keys have batch_size / factor dimensions.
        softness: divides the products of queries and keys.
    """

    auto = "all"
    own_projectors = frozenset({BOTTLENECK})
    contract = Contract(
        short_name="semckd",
        form="learned",
        per_sample=False,
        reduction="mean over elements, attention over teacher layers, mean over student layers and samples",
        scale="the variance of the teacher's features, about 0.01 to 1",
        needs="maps",
        properties=frozenset({"non_negative"}),
        paper="https://arxiv.org/abs/2012.03236",
        formula=r"\tfrac{1}{S} \sum_{i,j} \alpha_{ij} \overline{(r_{ij}(F_s^i) - F_t^j)^2},"
        r" \quad \alpha_{i} = \mathrm{softmax}_j(q_i \cdot k_j)",
        values_of="SemCKD (the authors)",
    )

    layers: Layers | None = "auto"
    projector: str | None = BOTTLENECK
    teacher_layers: Sequence[str] | Literal["auto"] = "auto"
    batch_size: int | None = None
    factor: PositiveInt = 4
    softness: Positive = 1.0

    @property
    def teacher_taps(self) -> list[str]:
        assert self.teacher_layers != "auto", "teacher_layers: auto must be replaced before build"
        return [*dict.fromkeys([*self.taps.values(), *self.teacher_layers])]

    def build(self, student: Mapping[str, torch.Size], teacher: Mapping[str, torch.Size]) -> None:
        if self.batch_size is None or self.batch_size < self.factor:
            raise UserError(
                f"batch_size={self.batch_size}: semckd makes its queries from the similarities within a batch. Give "
                f"the size of the largest batch, which must be at least factor={self.factor}."
            )
        sides = self.student_taps, self.teacher_taps
        width = self.batch_size // self.factor
        self.queries, self.keys = (nn.ModuleList(Embedding(self.batch_size, width) for _ in side) for side in sides)
        pairs = [Pair(s, t, student[s], teacher[t]) for s, t in product(*sides)]
        self.projectors = nn.ModuleList(self._projector(pair) for pair in pairs)

    def _projector(self, pair: Pair) -> nn.Module:
        aligned(pair, align_maps)
        if self.projector != BOTTLENECK:
            return make_projector(self.projector, pair)
        width = channels(pair.teacher)
        return bottleneck(channels(pair.student), 2 * width, width)

    def forward(self, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
        ours = [student.layers[tap] for tap in self.student_taps]
        theirs = [teacher.layers[tap] for tap in self.teacher_taps]
        query = torch.stack([embed(x) for embed, x in zip(self.queries, ours, strict=True)], 1)
        key = torch.stack([embed(x) for embed, x in zip(self.keys, theirs, strict=True)], 1)
        pairs = zip(self.projectors, product(ours, theirs), strict=True)
        distances = torch.stack([_distance(project, s, t) for project, (s, t) in pairs], 1)
        return self.loss(query, key, distances.unflatten(1, (len(ours), len(theirs))))


def _distance(project: nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
    """[B]. The larger map is pooled first, as by the authors, so the projector works at the smaller size."""
    student, teacher = align_maps(at_least_float32(student), at_least_float32(teacher))
    student, teacher = align(run(project, student), teacher)
    return (student - teacher).square().mean((1, 2, 3))
