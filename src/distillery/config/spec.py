"""The typed config: what each section may hold. Nodes with a `_target_` are checked in `targets.py`."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_type_hints

import lightning as L
from annotated_types import Ge, Gt, Le, Lt, MinLen
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry
from pydantic import BaseModel, ConfigDict, FiniteFloat, NonNegativeInt, PositiveInt, StringConstraints

from distillery.config.names import NAME
from distillery.config.targets import Kinds, check_settings, parameters, refuse_unknown
from distillery.core.errors import UserError
from distillery.core.kinds import Says, shown

MAX_SEED = 2**32 - 1  # NumPy's
BatchLimit = Annotated[
    NonNegativeInt | Annotated[float, Ge(0), Le(1)],
    Says("a whole number of batches, or a share of them from 0.0 to 1.0"),
]
Node = Mapping[str, Any]  # with a `_target_`
Name = Annotated[
    str,
    StringConstraints(pattern=f"^{NAME.pattern}$"),
    Says("letters, digits and . _ + - only, because folders are named after it"),
]


class Section(BaseModel):
    """Settings that belong together; no others are admitted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def kinds(cls) -> Kinds:
        """The annotation of each setting."""
        hints = get_type_hints(cls, include_extras=True)
        return {name: hints[name] for name in cls.model_fields}


class ImageInput(Section):
    """How a network of images wants them; null: as the data set has them."""

    mean: Annotated[list[FiniteFloat], Says("a list of finite numbers, one per channel")] | None = None
    std: (
        Annotated[list[Annotated[FiniteFloat, Gt(0)]], Says("a list of numbers greater than 0, one per channel")] | None
    ) = None
    size: Annotated[PositiveInt, Says("a side length in whole pixels")] | None = None


class TextInput(Section):
    """What tokenizer a network of texts was made for; null: the data's."""

    tokenizer: str | None = None


class Student(Section):
    net: Node | None = None
    weights: str | None = None
    input: ImageInput | TextInput
    initialise: Node | None = None


class FrozenTeacher(Section):
    role: Literal["frozen"] = "frozen"
    net: Node | None = None
    weights: str | None = None
    input: ImageInput | TextInput
    bn_mode: Literal["eval", "train"] = "eval"
    cache: bool = False


class EmaTeacher(Section):
    role: Literal["ema"]
    decay: Annotated[float, Ge(0), Lt(1), Says("a number of at least 0 and less than 1; 0.999 is usual")] = 0.999


class PeerTeacher(Section):
    role: Literal["peer"]
    net: Node | None = None
    input: ImageInput | TextInput


class SelfTeacher(Section):
    role: Literal["self"]


class ObjectiveSettings(Section):
    balance: Literal["auto"] | None = None
    balance_steps: PositiveInt = 10


class OptimSettings(Section):
    optimizer: Node
    scheduler: Node | None = None
    interval: Literal["epoch", "step"] = "epoch"
    monitor: str | None = None
    decay_biases_and_norms: bool = True


class Paths(Section):
    data: str
    outputs: str
    run: str


class TrainerSettings(Section):
    """Arguments of Lightning's Trainer; those whose values Lightning checks late, or not at all."""

    model_config = ConfigDict(extra="allow", frozen=True)

    accelerator: Literal["auto", "gpu", *AcceleratorRegistry.available_accelerators()]  # type: ignore[valid-type]
    devices: Annotated[
        PositiveInt
        | Literal[-1]
        | Annotated[str, StringConstraints(pattern=r"^(auto|-1|0*[1-9]\d*|\d+(,\d+)+,?|\d+,)$")]
        | Annotated[list[NonNegativeInt], MinLen(1)],
        Says("a number of devices of at least 1, a list of at least one device, or auto"),
    ]
    num_nodes: PositiveInt = 1
    strategy: Literal["auto", *StrategyRegistry.available_strategies()]  # type: ignore[valid-type]
    max_epochs: Annotated[int, Ge(-1), Le(MAX_SEED)]
    max_steps: Annotated[int, Ge(-1)] = -1
    min_epochs: PositiveInt | None = None
    min_steps: PositiveInt | None = None
    limit_train_batches: BatchLimit | None = None
    limit_val_batches: BatchLimit | None = None
    limit_test_batches: BatchLimit | None = None
    overfit_batches: BatchLimit = 0.0
    fast_dev_run: NonNegativeInt | bool = False
    accumulate_grad_batches: PositiveInt = 1
    check_val_every_n_epoch: PositiveInt = 1
    log_every_n_steps: NonNegativeInt = 50
    num_sanity_val_steps: Annotated[int, Ge(-1)] = 0
    gradient_clip_val: Annotated[float, Ge(0)] | None = None
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    profiler: Literal["simple", "advanced", "pytorch", "xla"] | None = None

    @classmethod
    def kinds(cls) -> Kinds:
        arguments = parameters(L.Trainer)
        assert arguments is not None
        return {**arguments[0], **super().kinds()}


class Until(Section):
    """A stage ends when `metric` has not improved by more than `min_delta` in `patience` validations in a row."""

    metric: str = "val/score"
    mode: Literal["max", "min"] = "max"
    patience: PositiveInt = 3
    min_delta: Annotated[float, Ge(0), Lt(math.inf), Says("a finite number of at least 0")] = 0.0

    def better(self, value: float, best: float | None) -> bool:
        """Whether `value` improves on the best one so far."""
        if best is None or math.isnan(best):
            return True
        return value > best + self.min_delta if self.mode == "max" else value < best - self.min_delta


Changes = Annotated[Mapping[str, Any], Says("a mapping {name: value}")] | None
TeacherChoice = Annotated[str | Mapping[str, Any], Says("a run folder, 'stage:<name>', none, or a mapping of settings")]


class StageSettings(Section):
    """What a stage changes; null restores the run's value."""

    epochs: (
        Annotated[
            PositiveInt | Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?%$")],
            Says("a whole number of at least 1, or a share of trainer.max_epochs such as 40%"),
        ]
        | None
    ) = None
    steps: PositiveInt | None = None
    until: Annotated[Mapping[str, Any], Says("a mapping {metric: val/score, patience: 3}")] | None = None
    teacher: TeacherChoice | None = None
    teachers: Annotated[Mapping[str, TeacherChoice], Says("a mapping {name: teacher}")] | None = None
    student: Changes = None
    loss: Annotated[Mapping[str, Mapping[str, Any] | None], Says("a mapping {loss: its changes}")] | None = None
    task: Changes = None
    train: Annotated[list[str], MinLen(1), Says("a list of wildcards for parameter names, as ['layer1.*']")] | None = (
        None
    )
    optim: Changes = None
    data: Changes = None
    easiest: Annotated[float, Gt(0), Le(1), Says("a share of the training samples, above 0 and at most 1")] | None = (
        None
    )


class Run(Section):
    """The whole config, as `configs/train.yaml` lays it out."""

    name: Name
    method: Name
    seed: Annotated[int, Ge(0), Le(MAX_SEED)]
    threads: PositiveInt | None
    compile: bool
    plan: bool
    resume: str | None
    replace: bool
    min_teacher_score: Annotated[float, Ge(0), Le(1), Says("a score between 0 and 1; 0 accepts any teacher")]
    ensemble: Annotated[list[str], MinLen(1), Says("a list of stages")] | None = None
    data: Node
    task: Node
    teachers: Mapping[str, Any]
    student: Student
    loss: Mapping[str, Node]
    objective: ObjectiveSettings
    optim: OptimSettings
    trainer: TrainerSettings
    callbacks: Mapping[str, Node | None]
    logger: Mapping[str, Node | None]
    paths: Paths
    stages: Mapping[str, StageSettings] | None = None


def check_section(path: str, node: Any, section: type[Section]) -> dict[str, Any]:
    """The settings of a section, each as its annotation admits it.

    Raises:
        UserError: something else than a mapping, an unknown setting, or a value of another type.
    """
    if not isinstance(node, Mapping):
        raise UserError(f"{path}={shown(node)}: it must be a mapping with {', '.join(section.model_fields)}.")
    refuse_unknown(path, node, section.kinds())
    return check_settings(path, node, section.kinds())
