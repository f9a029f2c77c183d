"""cfg → parts: data, networks, objective and their wiring, checked on one real batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning as L
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from distillery.data.vision import VisionData
from distillery.distiller import Distiller, Optim
from distillery.errors import UserError, did_you_mean
from distillery.layers import auto_layers
from distillery.losses.term import Term
from distillery.names import losses_of, teachers_of
from distillery.networks import build_student, build_teacher, complete
from distillery.objective import Objective
from distillery.recall import Recall
from distillery.signals import Network, probe
from distillery.teacher import Teacher


@dataclass
class Parts:
    """What a run is made of. `cfg` is the config with every open place filled, `example` the batch it was built on."""

    cfg: DictConfig
    data: VisionData
    distiller: Distiller
    example: Mapping[str, Tensor]


def build(cfg: DictConfig) -> Parts:
    """Build everything a run needs, and refuse what cannot work before anything is trained.

    The student is initialised first after seeding: the same for every method that shares the seed.

    Raises:
        UserError: data, networks or losses that do not fit; says which and how to mend it.
    """
    data = make("data", cfg.data)
    data.prepare_data()
    data.setup("fit")
    cfg.student = complete(cfg.student, data, "student")
    cfg.loss = {name: _sized(loss, data) for name, loss in losses_of(cfg).items()}
    cfg.teachers = {name: complete(teacher, data, name) for name, teacher in teachers_of(cfg).items()}

    L.seed_everything(cfg.seed, verbose=False)
    student = build_student(cfg.student)
    teachers = {name: build_teacher(teacher, name) for name, teacher in cfg.teachers.items()}
    batch = probe_batch(data)
    for network in (student, *teachers.values()):
        _refuse_other_classes(network, batch, data.num_classes)

    task = make("task", cfg.task)
    terms = {name: make(f"loss.{name}", loss) for name, loss in cfg.loss.items()}
    wire(terms, student, teachers, batch)
    objective = Objective(task, terms)
    for name, teacher in cfg.teachers.items():
        if teacher.get("cache"):
            teachers[name].recall = _recall(teachers[name], teacher, data, str(cfg.trainer.precision))
    if cfg.compile:
        for network in (student, *teachers.values()):
            network.net.compile()  # in place: `torch.compile(net)` would rename the keys of the checkpoint
    optim = Optim(**instantiate(cfg.optim))
    return Parts(cfg, data, Distiller(student, teachers, task, objective, optim, data.num_classes), batch)


def _recall(teacher: Teacher, cfg: DictConfig, data: VisionData, precision: str) -> Recall:
    if cfg.bn_mode == "train":
        raise UserError(
            f"teachers.{teacher.name}: with bn_mode=train its signals depend on the batch that an image is in, and "
            "cache=true keeps one for each image. Set one of the two back."
        )
    fingerprint = f"{teacher.fingerprint()} {cfg.input} {precision}"
    return Recall(partial(teacher.compute, training=True), fingerprint, data)


def _sized(loss: DictConfig, data: VisionData) -> DictConfig:
    """The loss with `samples`, if it has such a setting, filled in: an upper bound of `index` (memory banks)."""
    if "samples" in loss and loss.samples is None:
        loss.samples = len(data.raw.train.targets)
    return loss


def make(path: str, config: DictConfig) -> Any:
    """What the config at `path` describes; its own `UserError`, where Hydra would wrap it."""
    try:
        return instantiate(config)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise UserError(f"{path}: {error.__cause__}") from None
        raise


def wire(
    terms: Mapping[str, Term], student: Network, teachers: Mapping[str, Teacher], batch: Mapping[str, Tensor]
) -> None:
    """Settle each term's layers, tap both networks there, and let the term build its projectors to fit.

    A loss whose layers are `auto` is given the pairs that `auto_layers` finds; `term.layers` then holds them.
    """
    for name, term in terms.items():
        if term.teacher not in teachers:
            raise UserError(f"loss.{name}.teacher: no teacher {term.teacher!r}." + did_you_mean(term.teacher, teachers))
        if term.layers == "auto":
            term.layers = auto_layers(student.stages(batch), teachers[term.teacher].stages(batch), term.auto)
        if term.contract.needs != "logits" and not isinstance(term.layers, Mapping):
            raise UserError(
                f"loss.{name}.layers={term.layers}: this loss compares layers; give {{student layer: teacher layer}}, "
                "or auto."
            )
    student_shapes = student.tap([tap for term in terms.values() for tap in term.student_taps], batch)
    for teacher_name, teacher in teachers.items():
        own = {name: term for name, term in terms.items() if term.teacher == teacher_name}
        shapes = teacher.tap([tap for term in own.values() for tap in term.teacher_taps], batch)
        for name, term in own.items():
            try:
                term.build(student_shapes, shapes)
            except UserError as error:
                raise UserError(f"loss.{name}: {error}") from None


def probe_batch(data: VisionData, samples: int = 8) -> Mapping[str, Tensor]:
    """The first few training samples: what shapes, layers and costs are found out on."""
    return {key: value[:samples] for key, value in next(iter(data.train_dataloader())).items()}


def _refuse_other_classes(network: Network, batch: Mapping[str, Tensor], num_classes: int) -> None:
    try:
        found = probe(network, batch).logits.shape
    except (RuntimeError, AssertionError) as error:  # timm asserts that images have the size it was built for
        raise UserError(
            f"The {network.name} network cannot read a batch of images {tuple(batch['image'].shape)}: {error}\n"
            "Do `net.in_chans` and `input` (mean, std, size) fit the data?"
        ) from error
    if tuple(found[1:]) != (num_classes,):
        raise UserError(
            f"The {network.name} network gives logits {tuple(found)} where the data set has {num_classes} classes. "
            "Train it on these classes, set `net.num_classes`, or name the data set it belongs to."
        )
