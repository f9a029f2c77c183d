"""cfg → parts: data, networks, objective and their wiring, checked on one real batch."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from distillery.config.instantiate import make, make_scheduled, make_term
from distillery.config.names import losses_of, teachers_of
from distillery.config.networks import build_moving, build_student, build_teacher, complete, complete_teacher
from distillery.config.simkd import complete_reuse, reuse_classifier
from distillery.core.errors import UserError
from distillery.core.process import processes
from distillery.core.roles import FROZEN, SELF, role_of
from distillery.data.module import Data
from distillery.models.taps.network import Network, probe
from distillery.teachers.cache import TeacherCache
from distillery.teachers.frozen import Teacher
from distillery.teachers.peer import Peer
from distillery.training.check_task import check_task
from distillery.training.distiller import Distiller, Optim
from distillery.training.logged_metrics import refuse_unlogged
from distillery.training.objective import Objective
from distillery.training.wiring import wire


@dataclass
class Parts:
    """What a run is made of. `cfg` is the config with every open place filled, `example` the batch it was built on."""

    cfg: DictConfig
    data: Data
    distiller: Distiller
    example: Mapping[str, Tensor]

    @property
    def outputs(self) -> int | None:
        """How many logits a row has; None: any number."""
        return self.distiller.task.outputs(self.data)


def build_data(cfg: DictConfig) -> Data:
    """The data set, read and split."""
    data: Data = make("data", cfg.data)
    data.prepare_data()
    data.setup("fit")
    return data


def build(cfg: DictConfig, data: Data | None = None, former: Network | None = None, seed: int | None = None) -> Parts:
    """Build everything a run, or a stage of one, needs, and refuse what cannot work before anything is trained.

    The student is initialised first after seeding: the same for every method that shares the seed.

    Args:
        cfg: is completed in place.
        data: those of `cfg`, where they have been read before.
        former: the student that goes on; None: it is a new one.
        seed: of the student's first weights; None: `cfg.seed`.

    Raises:
        UserError: data, networks or losses that do not fit; says which and how to mend it.
    """
    data = build_data(cfg) if data is None else data
    task, schedules = make_scheduled("task", cfg.task)
    outputs = task.outputs(data)
    cfg.student = complete(cfg.student, data, task, "student")
    cfg.optim = _planned(cfg.optim, updates(data, cfg.trainer)[1])
    cfg.loss = {name: _sized(loss, data) for name, loss in losses_of(cfg).items()}
    cfg.teachers = {
        name: complete_teacher(teacher, data, task, name, cfg.student) for name, teacher in teachers_of(cfg).items()
    }
    if data.kind == "texts":
        from distillery.config.check_texts import (  # transformers takes seconds: only for texts
            check_lengths,
            check_tokenizer,
        )

        for name, own in {"student": cfg.student, **cfg.teachers}.items():
            if "input" in own:  # an average of the student is made for what the student is
                check_tokenizer(name, own.input.tokenizer, data)

    batch = data.example()
    cfg.student = complete_reuse(cfg.student, cfg.teachers, batch)

    L.seed_everything(cfg.seed if seed is None else seed, verbose=False)
    student = build_student(cfg.student, data) if former is None else former
    student.tap((), batch)  # an average of a former one would go on recording into it
    student.tap_attention((), batch)
    frozen = {name: build_teacher(own, name) for name, own in cfg.teachers.items() if role_of(own) == FROZEN}
    if former is None:
        reuse_classifier(student, frozen, batch)
    teachers: dict[str, Network] = {
        name: frozen[name] if name in frozen else build_moving(own, name, student) for name, own in cfg.teachers.items()
    }
    networks = dict.fromkeys((student, *teachers.values()))  # the student may be among its teachers
    for network in networks:
        _refuse_other_outputs(network, batch, data.kind, outputs)
    if data.kind == "texts":
        for network in networks:
            check_lengths(network, data)

    terms = {}
    for name, loss in cfg.loss.items():
        terms[name], own = make_term(f"loss.{name}", loss, cfg.seed)
        schedules |= own
    if any(SELF in term.by_teacher for term in terms.values()):
        teachers[SELF] = student
    check_task(task, data, terms, schedules, student, teachers, batch)
    wire(terms, student, teachers, batch, stop=not cfg.compile)
    peers = [name for name, teacher in teachers.items() if isinstance(teacher, Peer)]
    objective = Objective(task, terms, schedules, balance=cfg.objective.balance == "auto", peers=peers)
    refuse_unlogged(cfg.callbacks, schedules, validated=data.sizes["val"] > 0)
    for name, teacher in cfg.teachers.items():
        if teacher.get("cache"):
            frozen[name].cache = _cache_of(frozen[name], teacher, data, str(cfg.trainer.precision))
    if cfg.compile:
        torch.compiler.reset()  # a process compiles the code of a forward eight times, and a study makes many networks
        for network in networks:
            if network is not former:
                network.net.compile()  # in place: `torch.compile(net)` would rename the keys of the checkpoint
    optim = Optim(**instantiate(cfg.optim))
    distiller = Distiller(student, teachers, task, objective, optim, outputs)
    if cfg.trainer.max_epochs:  # without one there is no schedule either: a cosine cannot have the length 0
        _refuse_optim(distiller)
    return Parts(cfg, data, distiller, batch)


def _cache_of(teacher: Teacher, cfg: DictConfig, data: Data, precision: str) -> TeacherCache:
    if cfg.bn_mode == "train":
        raise UserError(
            f"teachers.{teacher.name}: with bn_mode=train its signals depend on the batch that an image is in, and "
            "cache=true keeps one for each image. Set one of the two back."
        )
    fingerprint = f"{teacher.fingerprint()} {cfg.input} {precision}"
    return TeacherCache(partial(teacher.compute, training=True), fingerprint, data)


def updates(data: Data, trainer: DictConfig) -> tuple[int, int]:
    """How often the optimizer steps in an epoch, and in the whole run."""
    batches, limit = data.batches(processes(trainer) * trainer.get("num_nodes", 1)), trainer.limit_train_batches
    if limit is not None:
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    steps = math.ceil(batches / trainer.accumulate_grad_batches)
    total = steps * trainer.max_epochs
    return steps, total if trainer.max_steps < 0 else min(trainer.max_steps, total)


def _planned(optim: DictConfig, steps: int) -> DictConfig:
    """The settings with the length of a schedule that ends with the run filled in, where the config leaves it open."""
    if optim.scheduler is not None and optim.scheduler.get("total_steps", steps) is None:
        optim.scheduler.total_steps = steps
    return optim


def _sized(loss: DictConfig, data: Data) -> DictConfig:
    """The loss with what it wants to know of the data filled in, where the config leaves that open.

    `samples` is an upper bound of `index` (memory banks), `batch_size` the size of the greatest batch.
    """
    sizes = {"samples": len(data.raw.train.targets), "batch_size": data.batch_size}
    for name in sizes.keys() & loss.keys():
        if loss[name] is None:
            loss[name] = sizes[name]
    return loss


def _refuse_optim(distiller: Distiller) -> None:
    """Settings of optimizer and scheduler that torch refuses; those of a scheduler show in its first step only."""
    try:
        made = distiller.configure_optimizers()  # once for nothing: the trainer makes its own
        if isinstance(made, dict):
            with warnings.catch_warnings(action="ignore"):  # of a step before the optimizer's
                made["lr_scheduler"]["scheduler"].step()
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"optim: these settings of optimizer and scheduler are refused: {error}") from error


def _refuse_other_outputs(network: Network, batch: Mapping[str, Tensor], kind: str, outputs: int | None) -> None:
    try:
        found = probe(network, batch).logits.shape
    except (RuntimeError, AssertionError, IndexError) as error:  # timm asserts the size of the images
        given = {key: tuple(value.shape) for key, value in batch.items() if key in ("image", "input_ids")}
        mend = {
            "images": "Do `net.in_chans` and `input` (mean, std, size) fit the data?",
            "texts": "Has its vocabulary as many entries as the tokenizer, and does it read a text of this length?",
        }[kind]
        raise UserError(
            f"The {network.name} network cannot read a batch of {kind} {next(iter(given.values()))}: {error}\n{mend}"
        ) from error
    if outputs is not None and found[-1] != outputs:
        raise UserError(
            f"The {network.name} network gives logits {tuple(found)} where the task has {outputs} classes or values. "
            "Train it on these classes, set `net.num_classes`, or name the data set it belongs to."
        )
