"""cfg → parts: data, networks, objective and their wiring, checked on one real batch."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from distillery.data.vision import VisionData
from distillery.distiller import Distiller, Optim
from distillery.errors import UserError, did_you_mean
from distillery.layers import all_stages, attention_layers, auto_layers, named_layers, own_layers
from distillery.losses.several import Several
from distillery.losses.term import Term
from distillery.monitored import refuse_unlogged
from distillery.names import FROZEN, SELF, losses_of, role_of, teachers_of
from distillery.networks import build_moving, build_student, build_teacher, complete, complete_teacher
from distillery.objective import Objective
from distillery.pooled import pooled_map
from distillery.recall import Recall
from distillery.reuse import complete_reuse, reuse_classifier
from distillery.roles import Peer, refuse_role
from distillery.schedules import Progress, Schedule, schedules_in
from distillery.signals import Network, probe
from distillery.teacher import Teacher
from distillery.teaching import COMBINE, per_teacher


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
    cfg.teachers = {
        name: complete_teacher(teacher, data, name, cfg.student) for name, teacher in teachers_of(cfg).items()
    }

    batch = probe_batch(data)
    cfg.student = complete_reuse(cfg.student, cfg.teachers, batch)

    L.seed_everything(cfg.seed, verbose=False)
    student = build_student(cfg.student)
    frozen = {name: build_teacher(own, name) for name, own in cfg.teachers.items() if role_of(own) == FROZEN}
    reuse_classifier(student, frozen, batch)
    teachers: dict[str, Network] = {
        name: frozen[name] if name in frozen else build_moving(own, name, student) for name, own in cfg.teachers.items()
    }
    networks = dict.fromkeys((student, *teachers.values()))  # the student may be among its teachers
    for network in networks:
        _refuse_other_classes(network, batch, data.num_classes)

    task, schedules = make_scheduled("task", cfg.task)
    terms = {}
    for name, loss in cfg.loss.items():
        terms[name], own = make_term(f"loss.{name}", loss, cfg.seed)
        schedules |= own
    if any(SELF in term.by_teacher for term in terms.values()):
        teachers[SELF] = student
    wire(terms, student, teachers, batch, stop=not cfg.compile)
    peers = [name for name, teacher in teachers.items() if isinstance(teacher, Peer)]
    objective = Objective(task, terms, schedules, balance=cfg.objective.balance == "auto", peers=peers)
    refuse_unlogged(cfg.callbacks, schedules, validated=data.sizes["val"] > 0)
    for name, teacher in cfg.teachers.items():
        if teacher.get("cache"):
            frozen[name].recall = _recall(frozen[name], teacher, data, str(cfg.trainer.precision))
    if cfg.compile:
        for network in networks:
            network.net.compile()  # in place: `torch.compile(net)` would rename the keys of the checkpoint
    optim = Optim(**instantiate(cfg.optim))
    distiller = Distiller(student, teachers, task, objective, optim, data.num_classes)
    _refuse_optim(distiller)
    return Parts(cfg, data, distiller, batch)


def _recall(teacher: Teacher, cfg: DictConfig, data: VisionData, precision: str) -> Recall:
    if cfg.bn_mode == "train":
        raise UserError(
            f"teachers.{teacher.name}: with bn_mode=train its signals depend on the batch that an image is in, and "
            "cache=true keeps one for each image. Set one of the two back."
        )
    fingerprint = f"{teacher.fingerprint()} {cfg.input} {precision}"
    return Recall(partial(teacher.compute, training=True), fingerprint, data)


def _sized(loss: DictConfig, data: VisionData) -> DictConfig:
    """The loss with what it wants to know of the data filled in, where the config leaves that open.

    `samples` is an upper bound of `index` (memory banks), `batch_size` the size of the greatest batch.
    """
    sizes = {"samples": len(data.raw.train.targets), "batch_size": data.batch_size}
    for name in sizes.keys() & loss.keys():
        if loss[name] is None:
            loss[name] = sizes[name]
    return loss


def make_term(path: str, config: DictConfig, seed: int) -> tuple[Term, dict[str, Schedule]]:
    """The loss that the config at `path` describes, with one teacher or several, and the schedules in it."""
    made = [make_scheduled(path, OmegaConf.create(own)) for own in per_teacher(path, config)]
    terms, schedules = [term for term, _ in made], made[0][1]
    if len(terms) == 1:
        return terms[0], schedules
    try:
        return Several(terms, config.get(COMBINE, "mean"), seed), schedules
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def make_scheduled(path: str, config: DictConfig) -> tuple[Any, dict[str, Schedule]]:
    """What the config at `path` describes, as it is at the start, and the schedules in it: by `kd.weight` and the like.

    Raises:
        UserError: a value that a schedule comes to is refused, or the number is read once, when the thing is made.
    """
    found = schedules_in(path, config, get_object(config._target_))
    first = {name: schedule.value(Progress(0, 1)) for name, schedule in found.items()}
    for name, schedule in found.items():
        for value in schedule.values:
            with torch.random.fork_rng(devices=[]):  # a loss's own first weights are those without a schedule
                make(path, config, **{**first, name: value})
    made = make(path, config, **first)
    for name, value in first.items():
        if getattr(made, name, None) != value or name in getattr(made, "at_build", ()):
            raise UserError(f"{path}.{name} cannot have a schedule: it is read once, at the start.")
    return made, {f"{path.removeprefix('loss.')}.{name}": schedule for name, schedule in found.items()}


def make(path: str, config: DictConfig, **numbers: float) -> Any:
    """What the config at `path`, with these `numbers`, describes; its own `UserError`, where Hydra would wrap it."""
    try:
        return instantiate(config, **numbers)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise UserError(f"{path}: {error.__cause__}") from None
        raise


def wire(
    terms: Mapping[str, Term],
    student: Network,
    teachers: Mapping[str, Network],
    batch: Mapping[str, Tensor],
    stop: bool = True,
) -> None:
    """Settle each term's layers, tap both networks there, and let the term build its projectors to fit.

    A loss whose layers are `auto` is given the pairs that `auto_layers` finds, and one that names them with wildcards
    those that match; `term.layers` then holds them. With `stop`, a teacher whose logits no term reads ends its forward
    in training at the last layer that one reads.
    """
    single = [(name, one) for name, term in terms.items() for one in term.by_teacher.values()]
    for name, term in single:
        if term.teacher not in teachers:
            raise UserError(f"loss.{name}.teacher: no teacher {term.teacher!r}." + did_you_mean(term.teacher, teachers))
        try:
            if isinstance(term.layers, Mapping):
                networks = student.net, teachers[term.teacher].net
                paths = ([path for path, _ in net.named_modules() if path] for net in networks)
                term.layers = named_layers(term.layers, *paths)
            elif term.layers == "auto":
                term.layers = _found_layers(term, student, teachers[term.teacher], batch)
        except UserError as error:
            raise UserError(f"loss.{name}: {error}") from None
        if term.teacher_layers == "auto":
            term.teacher_layers = all_stages(teachers[term.teacher].stages(batch))
        if term.contract.needs != "logits" and not isinstance(term.layers, Mapping):
            raise UserError(
                f"loss.{name}.layers={term.layers}: this loss compares layers; give {{student layer: teacher layer}}, "
                "or auto."
            )
        refuse_role(name, term, teachers[term.teacher], student)
    own_teacher = [(term, term.teacher_taps) for _, term in single if teachers[term.teacher] is student]
    of_student = _tap(student, [(term, term.student_taps) for _, term in single] + own_teacher, batch)
    for teacher_name, teacher in teachers.items():
        own = [(name, term) for name, term in single if term.teacher == teacher_name]
        taps = [(term, term.teacher_taps) for _, term in own]
        of_teacher = of_student if teacher is student else _tap(teacher, taps, batch)
        read = any(term.needs_logits for term in terms.values() if teacher_name in term.by_teacher)
        if stop and isinstance(teacher, Teacher) and not read:
            teacher.stop_early(batch)
        for name, term in own:
            on_attention = term.contract.needs == "attention"
            try:
                term.build(of_student[on_attention], of_teacher[on_attention])
            except UserError as error:
                raise UserError(f"loss.{name}: {error}") from None


def _tap(
    network: Network, wanted: Sequence[tuple[Term, list[str]]], batch: Mapping[str, Tensor]
) -> dict[bool, dict[str, torch.Size]]:
    """Tap what each term reads; the shapes of the taps on attention (True) and of the others (False)."""
    taps: dict[bool, list[str]] = {True: [], False: []}
    for term, own in wanted:
        taps[term.contract.needs == "attention"] += own
    return {True: network.tap_attention(taps[True], batch), False: network.tap(taps[False], batch)}


def _found_layers(term: Term, student: Network, teacher: Network, batch: Mapping[str, Tensor]) -> dict[str, str]:
    on_attention = term.contract.needs == "attention"
    if term.auto == "pooled":
        return {pooled_map(student, batch): pooled_map(teacher, batch)}
    if term.teacher_tap:
        return dict.fromkeys(all_stages(student.stages(batch)), term.teacher_tap)
    if teacher is student:
        return own_layers(
            student.attention_modules(batch) if on_attention else all_stages(student.stages(batch)), term.auto
        )
    if on_attention:
        return attention_layers(student.attention_modules(batch), teacher.attention_modules(batch), term.auto)
    return auto_layers(student.stages(batch), teacher.stages(batch), term.auto)


def probe_batch(data: VisionData, samples: int = 8) -> Mapping[str, Tensor]:
    """The first few training samples: what shapes, layers and costs are found out on."""
    return {key: value[:samples] for key, value in next(iter(data.train_dataloader())).items()}


def _refuse_optim(distiller: Distiller) -> None:
    """Settings of optimizer and scheduler that torch refuses; those of a scheduler show in its first step only."""
    try:
        made = distiller.configure_optimizers()  # once for nothing: the trainer makes its own
        if isinstance(made, dict):
            with warnings.catch_warnings(action="ignore"):  # of a step before the optimizer's
                made["lr_scheduler"]["scheduler"].step()
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"optim: these settings of optimizer and scheduler are refused: {error}") from error


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
