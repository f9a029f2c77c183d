"""The base of every loss term: a module around a pure function, with its promises as data."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self, dataclass_transform

import torch
from annotated_types import MinLen
from torch import Tensor, nn

from distillery.core.errors import UserError, did_you_mean
from distillery.core.kinds import Says
from distillery.losses.levels import Available, Level
from distillery.losses.settings import check_settings
from distillery.losses.shared_tokens import Vocabulary
from distillery.losses.signals import Signals
from distillery.losses.steps import Steps

Property = Literal["non_negative", "shift_invariant", "class_permutation", "batch_permutation", "symmetric"]
Needs = Literal["logits", "maps", "features", "vectors", "tokens", "attention"]
Layers = Annotated[
    Annotated[Mapping[str, str], MinLen(1)] | Literal["auto"], Says("a mapping {student layer: teacher layer}, or auto")
]
# What holds for most losses between two distributions over the classes.
OF_CLASSES = frozenset[Property](("non_negative", "shift_invariant", "class_permutation", "batch_permutation"))
PROJECTORS = frozenset({"auto", "conv", "linear", "mlp", "none"})  # kinds that every loss with a projector has


@dataclass(frozen=True)
class Contract:
    """What a loss needs and promises; by default, what a loss on logits does. The tests hold every term to it."""

    short_name: str  # used in run and report names: kd+at
    scale: str  # expected size before the weight
    paper: str
    formula: str  # LaTeX, one line
    values_of: str  # the implementation or equation that the values match
    reduction: str = "sum over classes, mean over rows"
    needs: Needs = "logits"
    properties: frozenset[Property] = OF_CLASSES
    # Where student and teacher agree: 0; 0 plus a constant; unspecified, because trainable modules lie in between
    form: Literal["divergence", "cross_entropy", "learned"] = "divergence"
    per_sample: bool = True  # forward returns [N], one value per row; False: one scalar for the whole batch
    of_labels: bool = False  # compares independent labels, each with a sigmoid: for tasks without a softmax
    aligned_classes: bool = True  # compares class by class; False: student and teacher may have other classes
    aligned_tokens: bool = True  # compares row by row; False: student and teacher may have other tokens
    bias: str = ""  # how its settings differ from the divergence that they stand for, where they do
    # {a level below "logits" that is enough: the setting with which it is, or ""}; see `Term.least_level`
    below_logits: Mapping[Level, str] = field(default_factory=dict)
    reads_labels: bool = False  # runs on the labelled rows alone, where some samples have no label
    takes_soft_labels: bool = False  # those labels may be probabilities [N,C], as of mixed images
    reads_samples: bool = False  # its targets are tokens that the student has drawn, where a batch says so: no labels


@dataclass(frozen=True)
class Pair:
    """A student layer and the teacher layer it learns from, with their shapes for one real batch."""

    student_tap: str
    teacher_tap: str
    student: torch.Size
    teacher: torch.Size

    def __str__(self) -> str:
        return (
            f"student layer {self.student_tap!r} {list(self.student)} with "
            f"teacher layer {self.teacher_tap!r} {list(self.teacher)}"
        )


@dataclass_transform(eq_default=False, field_specifiers=(field,))
@dataclass(eq=False, repr=False)
class Term(nn.Module):
    """A weighted loss between the student and one teacher.

    A subclass names the pure `function` of tensors that it computes, `class KD(Term, function=kd)`, and declares its
    hyper-parameters as annotated attributes with defaults. They become arguments of the constructor, as in a dataclass,
    and `loss` passes those that `function` takes on to it, with the values they have at that moment: a schedule changes
    a number by setting the attribute. A subclass that has layers, a projector or `gather` declares them too, since a
    term accepts only what it uses.

    Args:
        weight: factor of this term in the objective.
        teacher: key of the teacher in `cfg.teachers`.
        layers: {student tap: teacher tap}, 'auto' (replaced by a mapping before `build`), or None for
            `default_layers`.
        projector: kind of the adapters between the layers.
        gather: compare the samples of all ranks with each other; only for losses on the relations within a batch.

    Raises:
        UserError: a setting has a value that its type excludes, `layers` is empty or an unknown word, `projector` is of
            an unknown kind, or `gather` is set for a loss that returns one value per sample.
    """

    contract: ClassVar[Contract]
    function: ClassVar[Callable[..., Tensor]]
    default_layers: ClassVar[Mapping[str, str] | None] = None
    auto: ClassVar[Literal["all", "inner", "middle", "last", "pooled"]] = "last"  # which layers `auto` chooses
    teacher_tap: ClassVar[str | None] = None  # the teacher tap that `auto` pairs with every student layer
    own_projectors: ClassVar[frozenset[str]] = frozenset()  # kinds that only this loss has
    before_activation: ClassVar[bool] = False  # `auto` takes the input of the activation that ends a stage
    at_build: ClassVar[frozenset[str]] = frozenset()  # numbers that are read only in `build`: they take no schedule
    own_student_taps: ClassVar[Sequence[str]] = ()  # taps that `forward` reads in addition to those of `layers`
    own_teacher_taps: ClassVar[Sequence[str]] = ()

    weight: float = 1.0
    teacher: str = "main"
    layers: Layers | None = field(default=None, init=False)
    projector: str | None = field(default=None, init=False)
    gather: bool = field(default=False, init=False)
    # teacher taps that the term reads in addition to those of `layers`; auto: every stage
    teacher_layers: Sequence[str] | Literal["auto"] = field(default=(), init=False)
    measured: dict[str, Tensor] = field(default_factory=dict, init=False)  # in the last forward, for the log

    def __init_subclass__(cls, function: Callable[..., Tensor] | None = None, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        dataclass(eq=False, repr=False)(cls)
        if function is not None:
            cls.function = staticmethod(function)

    def __new__(cls, *_: object, **__: object) -> Self:
        term = super().__new__(cls)
        nn.Module.__init__(term)  # before the attributes are set, some of which are modules
        return term

    def __post_init__(self) -> None:
        check_settings(self)
        if self.layers is None:
            self.layers = self.default_layers
        if self.projector is not None and self.projector not in (kinds := PROJECTORS | self.own_projectors):
            raise UserError(f"projector={self.projector}: unknown kind.{did_you_mean(str(self.projector), kinds)}")
        if self.gather and self.contract.per_sample:
            raise UserError(
                f"gather=true: {self.name} compares no sample with another, so its value is the same on one process "
                "and on several. Remove gather."
            )

    def build(self, student: Mapping[str, torch.Size], teacher: Mapping[str, torch.Size]) -> None:
        """Check the shapes by tap, and make the projectors. Called once, when `layers` is a mapping.

        Raises:
            UserError: this loss cannot compare these layers.
        """

    def match_vocabularies(self, student: Vocabulary, teacher: Vocabulary) -> None:
        """Compare the vocabularies of a student and a teacher with different tokenizers. Called once, before `build`.

        Raises:
            UserError: they have no token in common.
        """

    def forward(self, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
        """The unweighted loss: [N] if `contract.per_sample`, else a scalar. `batch["target"]` has one label per row."""
        raise NotImplementedError

    def loss(self, *tensors: Any, **more: Any) -> Tensor:
        """`function` of the tensors and the term's settings: one value per row if the contract says so."""
        settings = {name: getattr(self, name) for name in self.settings_of_function}
        if self.contract.per_sample:
            settings["reduction"] = "none"
        return type(self).function(*tensors, **settings, **more)

    @cached_property
    def settings_of_function(self) -> list[str]:
        """The settings, beyond those of every term, that `function` takes by the same name."""
        own = {setting.name for setting in fields(self)} - {setting.name for setting in fields(Term)}
        return [name for name in inspect.signature(type(self).function).parameters if name in own]

    def pairs(self, student: Mapping[str, torch.Size], teacher: Mapping[str, torch.Size]) -> list[Pair]:
        """The pairs of layers with their shapes."""
        return [Pair(s, t, student[s], teacher[t]) for s, t in self.taps.items()]

    def features(self, student: Signals, teacher: Signals) -> Iterator[tuple[Tensor, Tensor]]:
        """The features of the pairs of layers, in the order of `pairs`."""
        return ((student.layers[s], teacher.layers[t]) for s, t in self.taps.items())

    @property
    def name(self) -> str:
        """The name of the loss in configs and messages: that of its module."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def family(self) -> str:
        """The family of the loss: the package of its module."""
        return type(self).__module__.split(".")[-2]

    @property
    def by_teacher(self) -> "dict[str, Term]":
        """The term for each of its teachers, by the teacher's name: itself, unless it is `Several`."""
        return {self.teacher: self}

    @property
    def taps(self) -> dict[str, str]:
        """{student tap: teacher tap}; empty for a loss on logits."""
        assert self.layers != "auto", "layers: auto must be mapped before build"
        return dict(self.layers or {})

    @property
    def student_taps(self) -> list[str]:
        """Every tap of the student that `forward` reads."""
        return [*self.taps, *self.own_student_taps]

    @property
    def teacher_taps(self) -> list[str]:
        """Every tap of the teacher that `forward` reads."""
        return [*self.taps.values(), *self.own_teacher_taps]

    @property
    def aligned_classes(self) -> bool:
        """Whether teacher and student must have the same classes."""
        return self.contract.aligned_classes

    @property
    def aligned_tokens(self) -> bool:
        """Whether teacher and student must have the same rows of logits."""
        return self.contract.aligned_tokens

    @property
    def reads_labels(self) -> bool:
        """Whether `forward` reads the labels: it is then given the labelled rows alone."""
        return self.contract.reads_labels

    @property
    def counts_batches(self) -> bool:
        """Whether `forward` depends on how many batches it has seen."""
        return any(isinstance(module, Steps) for module in self.modules())

    @property
    def compares_rows(self) -> bool:
        """Whether the value of a row depends on other rows: it is then given all rows of a batch at once."""
        return not self.contract.per_sample

    @property
    def needs_logits(self) -> bool:
        """Whether `forward` reads the teacher's logits."""
        return self.contract.needs == "logits"

    @property
    def least_level(self) -> Level | None:
        """What it must know of the teacher's distributions to be exact; None: nothing."""
        return "logits" if self.needs_logits else None

    def check_available(self, available: Available) -> None:
        """Refuse settings that cannot be computed from what is available of the teacher's distributions.

        Called before training with what the teacher will give, of which `least_level` is a part.

        Raises:
            UserError: says which setting to change.
        """


def hard_target(batch: Mapping[str, Tensor], name: str) -> Tensor:
    """The class indices [N] that the loss `name` needs.

    Raises:
        UserError: the batch has soft labels, or none.
    """
    target = batch.get("target")
    if target is None or target.is_floating_point():
        given = "has no labels" if target is None else "has soft labels"
        raise UserError(f"{name} needs class indices as labels, and this batch {given}. Use kd instead.")
    return target
