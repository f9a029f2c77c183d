"""Config → the parts of a run: data, networks, objective and their wiring, checked on one real batch."""

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from distillery.config.cached_teachers import cached_teachers, refuse_several
from distillery.config.check_cuda import GRAPHS
from distillery.config.check_strategy import is_fsdp2
from distillery.config.class_weights import complete_class_weights
from distillery.config.instantiate import make, make_scheduled, make_term
from distillery.config.loaded_teachers import LoadedTeachers
from distillery.config.networks import build_moving, complete, complete_teacher, is_absent, setting_of
from distillery.config.optim import complete_optim, is_validated, refuse_optim, updates
from distillery.config.served import answering_teachers, number_answers, served_teachers
from distillery.config.simkd import complete_reuse, reuse_classifier
from distillery.config.stages import Stage
from distillery.config.students import SOURCE, build_student, source_tokenizer
from distillery.config.teacher_classes import fit_classes
from distillery.core.errors import UserError
from distillery.core.kinds import shown
from distillery.core.roles import FROZEN, SELF, STORED, role_of
from distillery.data.module import Data
from distillery.data.stored_targets import with_stored_targets
from distillery.losses.term import Term
from distillery.models.evaluation_mode import evaluating
from distillery.models.taps.network import Network, probe
from distillery.tasks.metrics import validated
from distillery.tasks.task import Task
from distillery.teachers.cache import TeacherCache
from distillery.teachers.cached_teacher import CachedSignals
from distillery.teachers.ema import EMATeacher
from distillery.teachers.frozen import Teacher
from distillery.teachers.peer import Peer
from distillery.teachers.references import with_references
from distillery.teachers.side_stream import SideStream
from distillery.teachers.without_network import StoredTeacher, training_score
from distillery.training.check_task import check_levels, check_task
from distillery.training.distiller import Distiller
from distillery.training.head_chunks import end_before_heads
from distillery.training.logged_metrics import refuse_unlogged
from distillery.training.lr_scales import lr_scales
from distillery.training.objective import Objective
from distillery.training.optim import Optim
from distillery.training.step_graph import StepGraph, refuse_unrecordable
from distillery.training.wiring import wire

LOGITS = {"samples": 2, "tokens": 3, "spans": 3, "pixels": 4}  # the dimensions of the logits that a task needs
SIDES = (16, 32, 64, 96, 128, 224, 256, 299, 384, 448, 512)  # of the images that networks are made for


@dataclass
class Parts:
    """What a run is made of.

    Attributes:
        cfg: the config with every open setting filled in, so that it rebuilds these parts without the data.
        example: the batch on which shapes and layers were found.
    """

    cfg: DictConfig
    data: Data
    distiller: Distiller
    example: Mapping[str, Tensor]


def build_data(cfg: DictConfig) -> Data:
    """The data set, read and split."""
    data: Data = make("data", cfg.data)
    data.prepare_data()
    data.setup("fit")
    return data


def stage_data(stage: Stage, data: Data) -> Data:
    """The data of a stage: without the unlabelled training samples, if none of its losses reads them."""
    if not (data.labelled and data.unlabelled):
        return data
    for name, loss in stage.cfg.loss.items():
        with torch.random.fork_rng(devices=[]):
            term = make_term(f"loss.{name}", loss, stage.per_teacher[name], stage.schedules[f"loss.{name}"], 0)
        if not term.reads_labels:
            return data
    return data.labelled_alone()


def stored_teachers(cfg: DictConfig) -> dict[str, DictConfig]:
    """The configs of the teachers whose outputs were stored before the run, by name."""
    return {str(name): teacher for name, teacher in cfg.teachers.items() if role_of(teacher) == STORED}


def with_targets(cfg: DictConfig, data: Data) -> Data:
    """The data with what teachers have given before, see `with_stored_targets` and `number_answers`."""
    for name, teacher in stored_teachers(cfg).items():
        if name not in data.targets:
            data = with_stored_targets(data, name, teacher.path, teacher.temperature, teacher.missing)
    number_answers(cfg, data)
    return data


def build(
    stage: Stage, data: Data | None = None, former: Parts | None = None, loaded: LoadedTeachers | None = None
) -> Parts:
    """Build everything that a stage of a run needs. What cannot work is refused before anything is trained.

    The student is initialised right after seeding, so that it begins with the same weights whatever the method.

    Args:
        stage: a stage of a checked config (see `check`), of known length.
        data: its data, if they have been read before.
        former: the stage before, whose student is trained further; None: the student is a new one.
        loaded: the teachers that the run has loaded so far.

    Raises:
        UserError: data, networks or losses do not fit together; says which, and how to fix it.
    """
    cfg = stage.cfg.copy()
    data = with_targets(cfg, stage_data(stage, build_data(cfg)) if data is None else data)
    loaded = LoadedTeachers() if loaded is None else loaded
    task = make_scheduled("task", cfg.task, stage.schedules["task"])
    outputs = task.outputs(data)
    complete_class_weights(cfg.task, task, data)
    _complete(cfg, data, task, former)
    batch = data.example()

    L.seed_everything(stage.seed, verbose=False)
    if former is None:
        cfg.student, made = complete_reuse(cfg.student, cfg.teachers, batch, loaded)
        student = build_student(cfg.student, data, **made)
    else:
        student = former.distiller.student
    student.tap((), batch)  # an average of a former student would record into the former's taps
    student.tap_attention((), batch)
    stored = {name: StoredTeacher(name, data) for name in stored_teachers(cfg)}
    cached = cached_teachers(cfg, data, task, outputs, batch, loaded)
    frozen: dict[str, Teacher] = {**loaded.load_all(cfg.teachers, data), **stored}
    frozen |= {name: each.network or each for name, each in cached.items()}
    frozen |= {**served_teachers(cfg, data, task, batch), **answering_teachers(cfg, data)}
    if task.needs_references:
        data = with_references(data, task, frozen.values())
    for name, teacher in frozen.items():
        if task.rows_are != "samples" and name in data.targets:
            raise UserError(
                f"teachers.{name}: stored targets are of samples, but this task has labels of {task.rows_are}."
            )
        if name in cached:
            continue  # its classes are those of the run that it was written for
        logits, own_outputs = logits_shape(teacher, batch, data.kind), _outputs_of(teacher, data, task, outputs)
        fit_classes(teacher, cfg.teachers[name], data, task, own_outputs, logits, batch)
        if name in data.targets and not teacher.other_classes:
            teacher.remarks += training_score(teacher, data, task, outputs)
    if former is None:
        reuse_classifier(student, frozen, batch)
    teachers: dict[str, Network] = {
        name: frozen[name] if name in frozen else build_moving(own, name, student) for name, own in cfg.teachers.items()
    }
    networks = list(dict.fromkeys((student, *teachers.values())))  # the student may be among its teachers
    decay = cfg.optim.get("ema")
    averaged_student = None if decay is None else EMATeacher(student, "averaged student", decay)

    terms, schedules = {}, {f"task.{name}": each for name, each in stage.schedules["task"].items()}
    for name, loss in cfg.loss.items():
        own = stage.schedules[f"loss.{name}"]
        terms[name] = make_term(f"loss.{name}", loss, stage.per_teacher[name], own, cfg.seed)
        schedules |= {f"{name}.{setting}": each for setting, each in own.items()}
    _refuse_networks(networks, batch, data, task, outputs, _with_own_classes(terms))
    if any(SELF in term.by_teacher for term in terms.values()):
        teachers[SELF] = student
    check_task(task, data, terms, schedules, student, teachers, batch)
    if data.kind == "texts":
        from distillery.config.check_texts import match_vocabularies  # transformers takes seconds: only for texts

        match_vocabularies(terms, teachers, data, task)
    if cfg.get("step_graph"):
        refuse_unrecordable(task, data, terms)
    wire(terms, student, teachers, batch, stop=not cfg.compile)
    peers = [name for name, teacher in teachers.items() if isinstance(teacher, Peer)]
    rollouts = None
    if cfg.get("rollouts") is not None:
        # transformers takes seconds: only for texts
        from distillery.config.check_rollouts import build_rollouts, refuse_parts

        own = stage.schedules["rollouts"]
        rollouts = build_rollouts(cfg.rollouts, own, task, data, student, teachers.values())
        schedules |= {f"rollouts.{setting}": each for setting, each in own.items()}
    objective = Objective(task, terms, schedules, cfg.objective.balance == "auto", peers, rollouts)
    monitors = {"optim.monitor": cfg.optim.get("monitor")}
    validations = validated(task.metrics) if is_validated(data, cfg.trainer) else ()
    refuse_unlogged(cfg.callbacks, schedules, validations, monitors)

    for name, teacher in frozen.items():
        if name in cached and teacher.has_network:
            teacher.training_signals = CachedSignals(cached[name], probe(teacher, batch))
        elif cfg.teachers[name].get("cache") and name not in cached:
            teacher.training_signals = _cache_of(teacher, cfg, data)
    check_levels(terms, teachers)
    if rollouts is not None:
        refuse_parts(rollouts, task, terms, teachers, student)
    whole = f"compile={shown(cfg.compile)} compiles whole networks" if cfg.compile else ""
    whole = "hardware=fsdp2 shards its head" if is_fsdp2(cfg.trainer.get("strategy")) else whole
    others = teachers if averaged_student is None else {**teachers, averaged_student.name: averaged_student}
    end_before_heads(task, terms, student, others, batch, whole)
    new = networks if former is None else networks[1:]
    if cfg.channels_last:
        for network in new:
            network.net.to(memory_format=torch.channels_last)
    if cfg.fold_batchnorms:
        for teacher in frozen.values():
            if teacher.has_network:
                teacher.fold_batchnorms(batch)
    if cfg.compile:
        _compile(new, graphs=cfg.compile == GRAPHS)
    frequency = cfg.trainer.check_val_every_n_epoch if cfg.optim.get("monitor") in validations else 1
    settings = instantiate(cfg.optim, _convert_="all")  # plain lists: checkpoints are read with weights_only=True
    settings.pop("ema", None)
    rates = {"layer_decay": settings.pop("layer_decay", None), **settings.pop("lr_scale", {})}
    optim = Optim(**settings, lr_scales=lr_scales(student, objective, batch, **rates), frequency=frequency)
    side_stream = SideStream() if cfg.get("teacher_stream") else None
    step_graph = StepGraph() if cfg.get("step_graph") else None
    distiller = Distiller(student, teachers, task, objective, optim, outputs, averaged_student, side_stream, step_graph)
    if cfg.trainer.max_epochs:  # a cosine cannot have the length 0
        refuse_optim(distiller, cfg, updates(data, cfg.trainer)[1])
    return Parts(cfg, data, distiller, batch)


def _complete(cfg: DictConfig, data: Data, task: Task, former: Parts | None) -> None:
    """Fill in the open settings that follow from the data, the task or a teacher's run.

    Raises:
        UserError: a network does not fit the data, or has another tokenizer.
    """
    cfg.student = complete(cfg.student, data, task, "student") if former is None else former.cfg.student
    if cfg.trainer.max_epochs < 0 <= cfg.trainer.max_steps:
        in_an_epoch, total = updates(data, cfg.trainer)
        cfg.trainer.max_epochs = math.ceil(total / in_an_epoch)
    cfg.optim = complete_optim(cfg.optim, cfg.trainer, data, task)
    cfg.loss = {name: _with_sizes(loss, data) for name, loss in cfg.loss.items()}
    cfg.teachers = {
        name: complete_teacher(teacher, data, task, name, cfg.student) for name, teacher in cfg.teachers.items()
    }
    if data.kind == "texts":
        from distillery.config.check_texts import check_tokenizer  # transformers takes seconds: only for texts

        for name, network in {"student": cfg.student, **cfg.teachers}.items():
            if "input" in network and not is_absent(network):  # an average of the student has the student's
                frozen = name != "student" and role_of(network) == FROZEN
                check_tokenizer(name, network.input.tokenizer, data, task, frozen)
        if task.padded_outputs and former is None and (settings := cfg.student.get("initialise")):
            check_tokenizer(SOURCE, source_tokenizer(settings.source), data, task)


def _with_sizes(loss: DictConfig, data: Data) -> DictConfig:
    """The loss with the sizes of the data that it asks for, where the config leaves them open.

    `samples` is an upper bound of `index` (memory banks), `batch_size` the size of the largest batch.
    """
    sizes = {"samples": len(data.splits["train"].targets), "batch_size": data.batch_size}
    for name in sizes.keys() & loss.keys():
        if loss[name] is None:
            loss[name] = sizes[name]
    return loss


def _with_own_classes(terms: Mapping[str, Term]) -> set[str]:
    """The teachers that may have other classes than the data: no loss that aligns classes reads their logits."""
    free = {name for term in terms.values() for name in term.by_teacher}
    bound = (term for term in terms.values() if term.aligned_classes and term.needs_logits)
    return free - {name for term in bound for name in term.by_teacher}


def _refuse_networks(
    networks: Sequence[Network],
    batch: Mapping[str, Tensor],
    data: Data,
    task: Task,
    outputs: int | None,
    with_own_classes: Collection[str],
) -> None:
    """Refuse networks that cannot read the data, or have other outputs than the task.

    Args:
        with_own_classes: the names of the teachers that may have others, if they are frozen.
    """
    for network in networks:
        if network.available.level != "logits":
            continue  # it names the classes that it gives
        logits = logits_shape(network, batch, data.kind)
        if isinstance(network, Teacher) and network.other_classes:
            if network.name in with_own_classes:
                continue
            if not network.has_network:
                raise UserError(
                    f"Teacher {network.name!r} ({network.source}) {network.other_classes}. Choose its columns with "
                    f"teachers.{network.name}.classes, or learn from it by loss/response=[uld]."
                )
            raise UserError(
                f"The {network.name} network {network.other_classes}. Fine-tune it on these classes, say which are the "
                f"data's (teachers.{network.name}.classes), or learn from it by losses that compare no classes: those "
                "on features, relations and attention, and loss/response=[uld]."
            )
        if len(logits) != LOGITS[task.rows_are]:
            raise UserError(
                f"The {network.name} network gives logits {tuple(logits)}, but this task has labels of "
                f"{task.rows_are}. Choose a network or a head for them."
            )
        own = _outputs_of(network, data, task, outputs)
        if not task.fits(logits[-1], own):
            raise UserError(
                f"The {network.name} network gives logits {tuple(logits)} where the task has {own} classes or "
                f"values. Train it on these classes, or set {setting_of(network.name)}.net.num_classes."
            )
        if own is not None and logits[-1] > own and task.padded_outputs:
            note = f"of its {logits[-1]:,} logits the first {own:,} count: the tokenizer has no more tokens"
            network.remarks += [note] if note not in network.remarks else []
    if data.kind == "texts":
        # transformers takes seconds: only for texts
        from distillery.config.check_texts import check_lengths, check_one_way, conventions

        for network in networks:
            if not isinstance(network, Teacher) or network.has_network:
                check_lengths(network, data)
                check_one_way(network, data)
                network.remarks += [note for note in conventions(network, data) if note not in network.remarks]


def _outputs_of(network: Network, data: Data, task: Task, outputs: int | None) -> int | None:
    """The number of logits in a row of the network: a language model with another tokenizer predicts its own tokens."""
    if data.kind != "texts" or task.prediction != "token":
        return outputs
    from distillery.config.check_texts import own_texts  # transformers takes seconds: only for texts

    own = own_texts(network, data)
    return outputs if own is data else own.vocab_size


def _cache_of(teacher: Teacher, cfg: DictConfig, data: Data) -> TeacherCache:
    own = cfg.teachers[teacher.name]
    refuse_several(teacher.name, own, data)
    batch = data.example()
    if batch["target"].ndim > 1 and (tokenizer := teacher.adapter.own_tokenizer(batch)):
        raise UserError(
            f"teachers.{teacher.name}: cache=true keeps what a teacher says of the data's tokens, and this one reads "
            f"those of {tokenizer}. Set cache=false, or data.tokenizer={tokenizer}."
        )
    identity = (
        *(teacher.sha256, teacher.about_classes, own.input),
        *(cfg.trainer.precision, cfg.channels_last, cfg.fold_batchnorms, cfg.compile),  # the last bits depend on them
        hashlib.sha256(data.splits["train"].indices.numpy().tobytes()).hexdigest(),  # a curriculum chooses some
        *(data.views_key, teacher.placement),
    )
    return TeacherCache(partial(teacher.compute, training=True), " ".join(map(str, identity)), data)


def _compile(networks: Iterable[Network], graphs: bool) -> None:
    torch.compiler.reset()  # torch compiles a function eight times at most, and a study makes many networks
    for network in networks:
        network.replayed = graphs
        mode = {"mode": GRAPHS} if graphs else {}
        network.net.compile(**mode)  # in place: `torch.compile(net)` would rename the keys of the checkpoint


def logits_shape(network: Network, batch: Mapping[str, Tensor], kind: str) -> torch.Size:
    """The shape of the network's logits.

    Raises:
        UserError: the network cannot read the batch.
    """
    try:
        return network.shapes(batch).logits
    except UserError:
        raise
    except Exception as error:  # networks of others fail in many ways; timm asserts the size of the images
        given = {key: tuple(value.shape) for key, value in batch.items() if key in ("image", "input_ids")}
        path = setting_of(network.name)
        if kind == "texts":
            fix = (
                f"Has its vocabulary ({path}.net) as many entries as the tokenizer, and does it read a text of this "
                "length?"
            )
        elif side := _readable_side(network, batch):
            fix = f"It reads images of {side}x{side}: {path}.input.size={side}"
        else:
            fix = f"Do {path}.net.in_chans and {path}.input (mean, std, size) fit the data?"
        if getattr(getattr(network.net, "config", None), "is_encoder_decoder", False):
            fix = (
                "It has an encoder and a decoder: it needs config.decoder_start_token_id, and a tokenizer that ends "
                "every text with config.eos_token_id. Or choose an encoder: bert, electra, roberta, distilbert, …"
            )
        raise UserError(
            f"The {network.name} network cannot read a batch of {kind} {next(iter(given.values()))}: {error}\n{fix}"
        ) from error


def _readable_side(network: Network, batch: Mapping[str, Tensor]) -> int | None:
    """The smallest usual side of images that the network reads; None if it reads none."""
    (image,), _ = network.adapter(batch)
    for side in SIDES:
        with evaluating(network), suppress(Exception):
            network.net(image.new_zeros(1, image.shape[1], side, side))
            return side
    return None
