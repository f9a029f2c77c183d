"""What each section of the config may hold. Nodes with a `_target_` are checked in `targets.py`.

Each section is a table of annotations, against which `check_section` compares the settings.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MinLen, Predicate
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry
from pydantic import FiniteFloat, NonNegativeInt, PositiveInt, StringConstraints

from distillery.config.names import NAME
from distillery.config.targets import Kinds, check_settings, refuse_unknown
from distillery.core.errors import UserError
from distillery.core.kinds import Says, shown
from distillery.results.exports import ExportFormat
from distillery.tasks.metrics import mode_of

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


class ImageInput(TypedDict, total=False):
    """How a network of images wants them; null: as the data set has them."""

    mean: Annotated[list[FiniteFloat], Says("a list of finite numbers, one per channel")] | None
    std: (
        Annotated[list[Annotated[FiniteFloat, Gt(0)]], Says("a list of numbers greater than 0, one per channel")] | None
    )
    size: Annotated[PositiveInt, Says("a side length in whole pixels")] | None


class TextInput(TypedDict, total=False):
    """What tokenizer a network of texts was made for; null: the data's."""

    tokenizer: str | None


class Initialise(TypedDict, total=False):
    """What of another network a student begins with, see `models/text/initialise.py`."""

    source: str
    layers: Annotated[
        Literal["even", "first", "last"] | list[NonNegativeInt], Says("even, first, last, or a list of layers' numbers")
    ]
    embeddings: Literal["copy", "factorise"]
    keep: Literal["first", "magnitude", "activation"]
    samples: PositiveInt


class Lora(TypedDict, total=False):
    """The small matrices that are trained in place of a network, see `models/lora.py`."""

    r: PositiveInt
    alpha: Annotated[FiniteFloat, Gt(0)]
    target_modules: Annotated[Literal["all-linear"] | list[str], Says("all-linear, or a list of layers' names")]
    dropout: Annotated[float, Ge(0), Lt(1)]


class Student(TypedDict, total=False):
    net: Node | None
    weights: str | None
    new_head: bool
    input: ImageInput | TextInput
    initialise: Node | None  # see `Initialise`
    lora: Node | None  # see `Lora`
    qat: Literal["int8_dynamic", "8da4w", "int4_weight_only", "int2_weight_only"] | None  # see `models/qat.py`
    gradient_checkpointing: bool


Classes = Annotated[
    Literal["names"] | list[NonNegativeInt | str] | Mapping[str, NonNegativeInt | str],
    Says("names, a list with the name or number of a teacher's class for each of the data's, or a mapping to these"),
]


Folder = Annotated[
    str,
    Predicate(lambda text: text not in ("", "yes", "no", "on", "off")),
    Says("a folder that distill-cache has written"),
]


class FrozenTeacher(TypedDict, total=False):
    role: Literal["frozen"]
    net: Node | None
    weights: str | None
    input: ImageInput | TextInput
    bn_mode: Literal["eval", "train"]
    classes: Classes | None
    prompt: str
    cache: bool | Folder
    precision: Literal["bf16", "int8", "int4"] | None
    placement: Annotated[str, Says("a device such as cpu or cuda:1, or shard")] | None  # see `check_placement.py`


class StoredTeacher(TypedDict, total=False):
    role: Literal["stored"]
    path: str | None
    classes: Classes | None
    temperature: Annotated[FiniteFloat, Gt(0)]
    missing: Literal["refuse", "skip"]


Seconds = Annotated[FiniteFloat, Gt(0), Says("a number of seconds greater than 0")]


class ServedClient(TypedDict, total=False):
    """How a server is asked; it changes no value."""

    concurrent: PositiveInt
    sequences: PositiveInt
    timeout: Seconds
    patience: Seconds
    api_key_env: str | None


class ServedTeacher(TypedDict, total=False):
    role: Literal["served"]
    url: str
    model: str
    k: PositiveInt
    cache: Literal[False] | Folder
    client: ServedClient


class AnswersTeacher(TypedDict, total=False):
    role: Literal["answers"]
    path: str
    k: PositiveInt


EmaDecay = Annotated[float, Ge(0), Lt(1), Says("a number of at least 0 and less than 1; 0.999 is usual")]


class EmaTeacher(TypedDict, total=False):
    role: Literal["ema"]
    decay: EmaDecay


class PeerTeacher(TypedDict, total=False):
    role: Literal["peer"]
    net: Node | None
    input: ImageInput | TextInput


class SelfTeacher(TypedDict, total=False):
    role: Literal["self"]


class ObjectiveSettings(TypedDict, total=False):
    balance: Literal["auto"] | None
    balance_steps: PositiveInt


class LrScale(TypedDict, total=False):
    """Factors of the learning rate."""

    head: Annotated[FiniteFloat, Gt(0)]
    projectors: Annotated[FiniteFloat, Gt(0)]


class OptimSettings(TypedDict, total=False):
    optimizer: Node
    scheduler: Node | None
    interval: Literal["epoch", "step"]
    monitor: str | None
    decay_biases_and_norms: bool
    layer_decay: Annotated[float, Gt(0), Le(1), Says("a number greater than 0 and of at most 1, or null")] | None
    lr_scale: Node  # see `LrScale`
    ema: EmaDecay | None


class Target(TypedDict, total=False):
    """What the exported student may take, see `runs/budget.py`; null: any."""

    latency_ms: Annotated[FiniteFloat, Gt(0)] | None
    size_mb: Annotated[FiniteFloat, Gt(0)] | None
    format: ExportFormat


def has_budget(target: Mapping[str, Any] | None) -> bool:
    """Whether the settings of `Target` limit anything."""
    return any((target or {}).get(limit) is not None for limit in ("latency_ms", "size_mb"))


class Paths(TypedDict, total=False):
    data: str
    outputs: str
    run: str


class TrainerSettings(TypedDict, total=False):
    """The arguments of Lightning's Trainer whose values Lightning checks late, or not at all."""

    accelerator: Literal["auto", "gpu", *AcceleratorRegistry.available_accelerators()]  # type: ignore[valid-type]
    devices: Annotated[
        PositiveInt
        | Literal[-1]
        | Annotated[str, StringConstraints(pattern=r"^(auto|-1|0*[1-9]\d*|\d+(,\d+)+,?|\d+,)$")]
        | Annotated[list[NonNegativeInt], MinLen(1)],
        Says("a number of devices of at least 1, a list of at least one device, or auto"),
    ]
    num_nodes: PositiveInt
    strategy: Literal["auto", *StrategyRegistry.available_strategies()]  # type: ignore[valid-type]
    max_epochs: Annotated[int, Ge(-1), Le(MAX_SEED)]
    max_steps: Annotated[int, Ge(-1)]
    min_epochs: PositiveInt | None
    min_steps: PositiveInt | None
    limit_train_batches: BatchLimit | None
    limit_val_batches: BatchLimit | None
    limit_test_batches: BatchLimit | None
    overfit_batches: BatchLimit
    fast_dev_run: NonNegativeInt | bool
    accumulate_grad_batches: PositiveInt
    check_val_every_n_epoch: PositiveInt
    log_every_n_steps: NonNegativeInt
    num_sanity_val_steps: Annotated[int, Ge(-1)]
    gradient_clip_val: Annotated[float, Ge(0)] | None
    gradient_clip_algorithm: Literal["norm", "value"] | None
    profiler: Literal["simple", "advanced", "pytorch", "xla"] | None


@dataclass(frozen=True)
class Until:
    """A stage ends when `metric` has not improved by more than `min_delta` in `patience` validations in a row.

    `mode` says whether higher or lower is better; auto: as is known of the metric, else higher.
    """

    metric: str = "val/score"
    mode: Literal["auto", "max", "min"] = "auto"
    patience: PositiveInt = 3
    min_delta: Annotated[float, Ge(0), Lt(math.inf), Says("a finite number of at least 0")] = 0.0

    def better(self, value: float, best: float | None, higher_is_better: bool) -> bool:
        """Whether `value` improves on the best one so far; `higher_is_better`: of the task's score."""
        if best is None or math.isnan(best):
            return True
        mode = mode_of(self.metric, higher_is_better) if self.mode == "auto" else self.mode
        return value > best + self.min_delta if mode == "max" else value < best - self.min_delta


Changes = Annotated[Mapping[str, Any], Says("a mapping {name: value}")] | None
TeacherChoice = Annotated[str | Mapping[str, Any], Says("a run folder, 'stage:<name>', none, or a mapping of settings")]
LossChanges = Annotated[Mapping[str, Any] | None, Says("a mapping, {weight: 2}; {} takes the loss as it is")]


class StageSettings(TypedDict, total=False):
    """What a stage changes; null restores the run's value."""

    epochs: (
        Annotated[
            PositiveInt | Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?%$")],
            Says("a whole number of at least 1, or a share of trainer.max_epochs such as 40%"),
        ]
        | None
    )
    steps: PositiveInt | None
    until: Annotated[Mapping[str, Any], Says("a mapping {metric: val/score, patience: 3}")] | None
    teacher: TeacherChoice | None
    teachers: Annotated[Mapping[str, TeacherChoice], Says("a mapping {name: teacher}")] | None
    student: Changes
    loss: Annotated[Mapping[str, LossChanges], Says("a mapping {loss: its changes}")] | None
    task: Changes
    train: Annotated[list[str], MinLen(1), Says("a list of wildcards for parameter names, as ['layer1.*']")] | None
    optim: Changes
    data: Changes
    rollouts: Changes
    easiest: Annotated[float, Gt(0), Le(1), Says("a share of the training samples, above 0 and at most 1")] | None


Switch = Annotated[bool | Literal["auto"], Says("true, false or auto")]
Compiled = Annotated[bool | Literal["auto", "reduce-overhead"], Says("true, false, reduce-overhead or auto")]


class Run(TypedDict, total=False):
    """What the config holds beside its sections, as `configs/train.yaml` lays it out."""

    name: Name
    method: Name
    seed: Annotated[int, Ge(0), Le(MAX_SEED)]
    threads: PositiveInt | None
    tf32: bool
    compile: Compiled
    channels_last: Switch  # see `candidates.py`
    fold_batchnorms: Switch
    teacher_stream: Switch
    step_graph: Switch
    plan: bool
    resume: str | None
    replace: bool
    min_teacher_score: Annotated[float, Ge(0), Says("a score; 0 accepts any teacher")]
    ensemble: Annotated[list[str], MinLen(1), Says("a list of stages")] | None


def kinds(section: type) -> Kinds:
    """The annotation of each setting of a section."""
    return get_type_hints(section, include_extras=True)


def check_section(path: str, node: Any, section: type) -> dict[str, Any]:
    """The settings of a section, each as its annotation admits it.

    Raises:
        UserError: the node is not a mapping, or has an unknown setting or a value of another type.
    """
    known = kinds(section)
    if not isinstance(node, Mapping):
        raise UserError(f"{path}={shown(node)}: it must be a mapping with {', '.join(known)}.")
    refuse_unknown(path, node, known)
    return check_settings(path, node, known)
