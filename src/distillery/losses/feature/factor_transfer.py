"""Factor transfer (Kim, Park and Kwak, NeurIPS 2018)."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillery.core.numerics import Reduction, at_least_float32, reduce_rows, require_same_shape
from distillery.losses.alignment import align_maps, as_map, channels
from distillery.losses.layer_terms import LayerTerm, require_positions
from distillery.losses.projectors import aligned, run
from distillery.losses.settings import Positive, PositiveInt
from distillery.losses.signals import Signals
from distillery.losses.steps import Steps
from distillery.losses.term import Contract, Pair

Variant = Literal["simple", "paper"]
SLOPE = 0.1  # of the LeakyReLUs, as in the authors' code


def factor_transfer(
    student_features: Tensor,
    teacher_features: Tensor,
    variant: Variant = "simple",
    p1: float = 2,
    p2: float = 1,
    reduction: Reduction = "mean",
) -> Tensor:
    """Mean |difference|^p2 of the factors, each normalised to unit L2 norm per sample.

    'simple': the factor of a map is the mean over channels of |feature|^p1: [B,H·W], as in attention transfer.
    'paper': the maps already are factors, from paraphraser and translator, and keep their channels: [B,C·H·W]; `p1` is
    not used.

    Args:
        student_features: [B,C,H,W], or tokens [B,L,C] of a square grid (`as_map`).
        teacher_features: the same; H' and W' may differ, and with 'simple' C'. The larger map is average-pooled first.
        variant: which factor.
        p1: power of the features, see above.
        p2: power of the difference.
        reduction: 'mean' over a factor's elements and samples, or 'none' for the mean of each sample's: [B].

    Paper: Paraphrasing Complex Network, https://arxiv.org/abs/1802.04977. 'simple' has the values of RepDistiller
    (where it follows a paraphraser and a translator), 'paper' those of the authors' code, which averages where
    equation 3 of the paper takes the norm.
    """
    student, teacher = align_maps(at_least_float32(student_features), at_least_float32(teacher_features))
    if variant == "simple":
        student, teacher = (features.abs().pow(p1).mean(1) for features in (student, teacher))
    require_same_shape(student, teacher)
    gap = F.normalize(student.flatten(1)) - F.normalize(teacher.flatten(1))
    return reduce_rows(gap.abs().pow(p2).mean(1), reduction)


class FactorTransfer(LayerTerm, function=factor_transfer):
    """`factor_transfer` on pairs of layers, summed.

    With 'paper' each pair has a paraphraser (an autoencoder of the teacher's features, whose code is their factor) and
    a translator (from the student's features to its factor), made of 3×3 convolutions as in the authors' code. In the
    first `pretrain_steps` training batches the loss is the paraphraser's mean squared reconstruction error (equation 1;
    the authors' code has the absolute error). Its gradient is not multiplied by `weight`, and the student learns
    nothing from it. After that the paraphraser is frozen. Only one of the two is trained at a time, so several
    processes need trainer.strategy=ddp_find_unused_parameters_true.
    """

    auto = "last"
    contract = Contract(
        short_name="ft",
        reduction="mean over a factor's elements and samples, sum over pairs of layers",
        scale="at most 2 / sqrt(elements of a factor) a pair: 0.01 to 0.1",
        needs="maps",
        properties=frozenset({"non_negative", "batch_permutation", "symmetric"}),
        paper="https://arxiv.org/abs/1802.04977",
        formula=r"\tfrac{1}{n} \left\lVert \tfrac{f_s}{\lVert f_s \rVert_2} - \tfrac{f_t}{\lVert f_t \rVert_2}"
        r" \right\rVert_1, \quad f = \overline{F^2}_c \text{ (simple), } f_s = T(F_s),\ f_t = P(F_t) \text{ (paper)}",
        values_of="RepDistiller (simple), the authors (paper)",
    )

    variant: Variant = "simple"
    p1: Positive = 2
    p2: Positive = 1
    rate: Positive = 0.5
    pretrain_steps: PositiveInt = 2346
    steps: Steps = field(default_factory=Steps, init=False)

    def checked(self, pair: Pair) -> Pair:
        if self.variant == "simple":
            require_positions(self.name, pair, "the factor of a single position is always 1", ", or variant=paper")
        aligned(pair, align_maps)
        return pair

    def build(self, student: Mapping[str, torch.Size], teacher: Mapping[str, torch.Size]) -> None:
        pairs = [self.checked(pair) for pair in self.pairs(student, teacher)]
        if self.variant == "paper":
            self.encoders = nn.ModuleList(_encoder(channels(pair.teacher), self._width(pair)) for pair in pairs)
            self.decoders = nn.ModuleList(_decoder(self._width(pair), channels(pair.teacher)) for pair in pairs)
            self.translators = nn.ModuleList(_encoder(channels(pair.student), self._width(pair)) for pair in pairs)

    def forward(self, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
        step = self.steps.done
        self.steps.done += self.training
        pairs = list(self.features(student, teacher))
        if self.variant == "paper" and step < self.pretrain_steps:
            return self._reconstruction([as_map(t) for _, t in pairs])
        if self.variant == "paper":
            pairs = self._factors(pairs)
        return torch.stack([self.loss(s, t) for s, t in pairs]).sum(0)

    def _reconstruction(self, features: list[Tensor]) -> Tensor:
        """The paraphrasers' mean squared errors, [B]."""
        parts = zip(self.encoders, self.decoders, features, strict=True)
        gaps = [at_least_float32(run(decode, run(encode, t))) - at_least_float32(t) for encode, decode, t in parts]
        value = torch.stack([gap.square().flatten(1).mean(1) for gap in gaps]).sum(0)
        # With a weight of 500, which is meant for factors of unit length, it would diverge.
        return torch.lerp(value.detach(), value, 1 / self.weight if self.weight else 1.0)

    def _factors(self, pairs: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """The factors of the student by the translators, and of the teacher by the paraphrasers."""
        with torch.no_grad():
            teachers = [run(encode, as_map(t)) for encode, (_, t) in zip(self.encoders, pairs, strict=True)]
        students = [run(translate, as_map(s)) for translate, (s, _) in zip(self.translators, pairs, strict=True)]
        return list(zip(students, teachers, strict=True))

    def _width(self, pair: Pair) -> int:
        """The number of channels of the pair's factors."""
        return max(1, round(self.rate * channels(pair.teacher)))


def _encoder(width_in: int, width_out: int) -> nn.Module:
    return _layers(nn.Conv2d, (width_in, width_in, width_out, width_out))


def _decoder(width_in: int, width_out: int) -> nn.Module:
    return _layers(nn.ConvTranspose2d, (width_in, width_in, width_out, width_out))


def _layers(kind: type[nn.Conv2d] | type[nn.ConvTranspose2d], widths: Sequence[int]) -> nn.Module:
    """3×3 layers of this kind, each followed by a LeakyReLU."""
    return nn.Sequential(
        *(
            layer
            for inputs, outputs in itertools.pairwise(widths)
            for layer in (kind(inputs, outputs, 3, padding=1), nn.LeakyReLU(SLOPE))
        )
    )
