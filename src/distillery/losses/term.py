"""What every loss term is: a module around a pure function, with its promises as data."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.losses.signals import Attention, Signals

Property = Literal["non_negative", "shift_invariant", "class_permutation", "batch_permutation", "symmetric"]
Needs = Literal["logits", "maps", "features", "vectors", "tokens", "attention"]
Layers = Mapping[str, str] | Literal["auto"]


@dataclass(frozen=True)
class Contract:
    """What a loss needs and promises; the tests hold every term to it."""

    short_name: str  # run and report names are made of it: kd+at
    family: Literal["response", "feature", "attention", "relation"]
    # 0 where student and teacher agree; with a constant added to that; with trainable modules between the two
    form: Literal["divergence", "cross_entropy", "learned"]
    per_sample: bool  # forward gives [N], one value a row; False: a scalar of the whole batch
    t_squared: bool | None  # multiplied by T² by default; None: no temperature
    reduction: str
    scale: str  # expected size before the weight
    needs: Needs
    properties: frozenset[Property]
    paper: str
    formula: str  # LaTeX, one line
    values_of: str  # the implementation or equation whose values these are


@dataclass(frozen=True)
class Pair:
    """A student layer and the teacher layer it learns from, with the shapes of a real batch."""

    student_tap: str
    teacher_tap: str
    student: torch.Size
    teacher: torch.Size

    def __str__(self) -> str:
        return (
            f"student layer {self.student_tap!r} {list(self.student)} with "
            f"teacher layer {self.teacher_tap!r} {list(self.teacher)}"
        )


class Term(nn.Module):
    """A weighted loss between the student and one teacher.

    Args:
        weight: factor of this term in the objective.
        teacher: key of the teacher in `cfg.teachers`.
        layers: {student tap: teacher tap}, 'auto' (mapped before `build`), or None for losses on logits.
        projector: kind of the adapters between the layers, for the losses that have one.
        gather: compare the samples of all ranks with each other; only for losses on the relations of a batch.

    Raises:
        UserError: `layers` is empty or an unknown word; `gather` with a loss that has a value for each sample.
    """

    contract: ClassVar[Contract]
    auto: ClassVar[Literal["all", "inner", "middle", "last", "pooled"]] = "last"
    teacher_tap: ClassVar[str | None] = None  # what of the teacher `auto` gives every student layer
    before_activation: ClassVar[bool] = False  # `auto`: what goes into the activation that ends a stage
    at_build: ClassVar[frozenset[str]] = frozenset()  # numbers that are read once, when it is built: no schedule
    teacher_layers: Sequence[str] | Literal["auto"] = ()  # that it reads beside those of `layers`; auto: the stages

    def __init__(
        self,
        weight: float = 1.0,
        teacher: str = "main",
        layers: Layers | None = None,
        projector: str | None = None,
        gather: bool = False,
    ) -> None:
        super().__init__()
        if layers is not None and (not layers or (isinstance(layers, str) and layers != "auto")):
            raise UserError(f"layers={layers!r}: give a mapping {{student layer: teacher layer}}, or auto.")
        if gather and self.contract.per_sample:
            raise UserError(
                f"gather=true: {self.contract.short_name} compares no sample with another, so that it is the same on "
                "several processes as on one. Remove gather."
            )
        self.weight = weight
        self.teacher = teacher
        self.layers = dict(layers) if isinstance(layers, Mapping) else layers
        self.projector = projector
        self.gather = gather

    def build(self, student: Mapping[str, torch.Size], teacher: Mapping[str, torch.Size]) -> None:
        """Check the probed shapes (by tap) and make the projectors. Called once, when `layers` is a mapping.

        Raises:
            UserError: a layer's shape cannot serve this loss.
        """

    def forward(self, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
        """The unweighted loss: [N] if `contract.per_sample`, else a scalar. `batch["target"]` is that of the rows."""
        raise NotImplementedError

    def pairs(self, student: Mapping[str, torch.Size], teacher: Mapping[str, torch.Size]) -> list[Pair]:
        """The pairs of layers with their shapes."""
        return [Pair(s, t, student[s], teacher[t]) for s, t in self.taps.items()]

    def features(self, student: Signals, teacher: Signals) -> Iterator[tuple[Tensor, Tensor]]:
        """The pairs of layers' tensors, in the same order as `pairs`."""
        return ((student.layers[s], teacher.layers[t]) for s, t in self.taps.items())

    def attentions(self, student: Signals, teacher: Signals) -> Iterator[tuple[Attention, Attention]]:
        """The pairs of attention layers' operands, in the same order as `pairs`."""
        return ((student.attention[s], teacher.attention[t]) for s, t in self.taps.items())

    @property
    def by_teacher(self) -> "dict[str, Term]":
        """The loss with each of its teachers, by the teacher's name: here itself (see `Several`)."""
        return {self.teacher: self}

    @property
    def taps(self) -> dict[str, str]:
        """{student tap: teacher tap}, settled; empty for a loss on logits."""
        assert self.layers != "auto", "layers: auto must be mapped before build"
        return dict(self.layers or {})

    @property
    def student_taps(self) -> list[str]:
        """Every tap of the student that `forward` reads."""
        return list(self.taps)

    @property
    def teacher_taps(self) -> list[str]:
        """Every tap of the teacher that `forward` reads."""
        return list(self.taps.values())

    @property
    def needs_logits(self) -> bool:
        """Whether `forward` reads the teacher's logits."""
        return self.contract.needs == "logits"


def require_positive(**values: float) -> None:
    """Raise UserError, naming the hyper-parameter, unless every value is a finite number above 0."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise UserError(f"{name}={value}: it must be a finite number greater than 0.")


def require_fraction(**values: float) -> None:
    """Raise UserError, naming the hyper-parameter, unless every value is at least 0 and below 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise UserError(f"{name}={value}: it must be at least 0 and below 1.")


def hard_target(batch: Mapping[str, Tensor], name: str) -> Tensor:
    """The class indices [N] that the loss `name` needs.

    Raises:
        UserError: the batch has soft labels, or none.
    """
    target = batch.get("target")
    if target is None or target.is_floating_point():
        given = "none" if target is None else "soft ones"
        raise UserError(f"{name} needs class indices as labels, and the data gives {given}. Use kd instead.")
    return target
