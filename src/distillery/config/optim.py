"""Optimizer and scheduler: makes room for other ones, fills in what depends on the run, refuses what torch refuses."""

import math
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from distillery.config.command_line import settings_in
from distillery.config.targets import HYDRA, imported, parameters
from distillery.core.errors import UserError
from distillery.core.kinds import shown
from distillery.core.process import processes
from distillery.core.terminal import say
from distillery.data.module import Data
from distillery.tasks.metrics import LOSS, SCORE, mode_of
from distillery.tasks.task import Task
from distillery.training.distiller import Distiller
from distillery.training.optim import TimmScheduler, step

PLATEAU = ReduceLROnPlateau.__name__  # the scheduler that watches a metric
TIMM_PLATEAU = "PlateauLRScheduler"  # likewise, but its state cannot be saved
LENGTHS = ("total_steps", "num_training_steps", "t_initial")  # arguments of schedulers; null: the run's length
SHARES = ("num_warmup_steps", "num_decay_steps", "warmup_t")  # below 1: a share of it


def remove_leftovers(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Remove the settings of an optimizer or a scheduler that the command line has replaced by another.

    Where an override gives `optim.optimizer._target_`, or the scheduler's, settings of the files that the new target
    does not take are removed, and named on the terminal. Settings that an override gives are kept, so that they are
    refused later.
    """
    given = settings_in([override for override in overrides if "optim." in override])
    for path in ("optim.optimizer", "optim.scheduler"):
        if f"{path}._target_" not in given:
            continue
        node = OmegaConf.select(cfg, path)
        of_files = [str(key) for key in node if key not in HYDRA and f"{path}.{key}" not in given]
        left = [key for key in not_taken(path, node) if key in of_files]
        for key in left:
            del node[key]
        if left:
            kept = ", ".join(f"{key}={node[key]}" for key in of_files if key in node) or "nothing"
            say(f"{path}: {node._target_} does not take {', '.join(left)}. Kept: {kept}.")


def not_taken(path: str, node: Mapping[str, Any]) -> list[str]:
    """The settings of a node that its target does not take."""
    names, takes_any = parameters(imported(f"{path}._target_", node["_target_"]))
    return [] if takes_any else [str(key) for key in node if key not in {*names, *HYDRA}]


def updates(data: Data, trainer: DictConfig) -> tuple[int, int]:
    """The number of updates in an epoch and in the whole run; -1 for a run without end.

    Raises:
        UserError: there would be no batch.
    """
    batches = _batches(data, trainer)
    steps = math.ceil(batches / trainer.accumulate_grad_batches)
    if trainer.max_epochs < 0:
        return steps, trainer.max_steps
    total = steps * trainer.max_epochs
    return steps, total if trainer.max_steps < 0 else min(trainer.max_steps, total)


def _batches(data: Data, trainer: DictConfig) -> int:
    """How many training batches an epoch has."""
    available, limit = data.batches(processes(trainer) * trainer.get("num_nodes", 1)), trainer.limit_train_batches
    if limit is None:
        return available
    batches = min(available, limit) if isinstance(limit, int) else int(available * limit)
    if batches == 0:
        raise UserError(
            f"trainer.limit_train_batches={limit} leaves none of the {available} batches of an epoch. Give a number of "
            "batches of at least 1, or a greater share."
        )
    return batches


def is_validated(data: Data, trainer: DictConfig) -> bool:
    """Whether there are validations.

    Raises:
        UserError: the share of the validation split is too small for a single batch.
    """
    if data.sizes["val"] == 0:
        return False
    limit, batches = trainer.limit_val_batches, len(data.val_dataloader())
    if isinstance(limit, float) and limit > 0 and int(batches * limit) == 0:
        raise UserError(
            f"trainer.limit_val_batches={limit} leaves none of the {batches} batches of the validation. Give a number "
            "of batches, a greater share, or 0 for no validation."
        )
    return limit != 0


def complete_optim(optim: DictConfig, trainer: DictConfig, data: Data, task: Task) -> DictConfig:
    """The settings with what depends on the run filled in where they leave it open: a schedule's length and metric.

    Raises:
        UserError: a metric for a scheduler that watches none, or a scheduler that does and steps after each update; a
            schedule that counts in other units than `interval`, or whose warm-up is as long as the run.
    """
    scheduler = optim.scheduler
    if scheduler is not None:
        _complete_lengths(scheduler, optim.interval, trainer, data)
    watches = scheduler is not None and str(scheduler._target_).endswith(PLATEAU)
    if not watches:
        if optim.get("monitor") is not None:
            raise UserError(
                f"optim.monitor={optim.monitor}: the scheduler watches no metric. Set it to null, or choose "
                "torch.optim.lr_scheduler.ReduceLROnPlateau."
            )
        return optim
    if optim.interval == "step":
        raise UserError(f"optim.interval=step: {PLATEAU} watches a metric that is there after an epoch. Use epoch.")
    if optim.get("monitor") is None:
        mode = scheduler.get("mode", "min")
        of_mode = {"min": LOSS if is_validated(data, trainer) else "loss", "max": SCORE}
        chosen = task.monitor != SCORE and mode == mode_of(task.monitor, task.higher_is_better)
        optim.monitor = task.monitor if chosen else of_mode[mode]
    return optim


def _complete_lengths(scheduler: DictConfig, interval: str, trainer: DictConfig, data: Data) -> None:
    """Fill in the lengths that are null, and those that are a share of the run's, in intervals."""
    in_epochs = interval == "epoch"
    told = "t_in_epochs" in parameters(imported("optim.scheduler._target_", scheduler._target_))[0]  # timm's
    if told and (given := scheduler.setdefault("t_in_epochs", in_epochs)) != in_epochs:
        raise UserError(f"optim.scheduler.t_in_epochs={shown(given)}: with optim.interval={interval} leave it out.")
    open_lengths = [key for key in LENGTHS if scheduler.get(key, 0) is None]
    shares = [key for key in SHARES if 0 < scheduler.get(key, 0) < 1]
    warm_ups = [key for key in SHARES if "warmup" in key and scheduler.get(key)]
    if not (open_lengths or shares or warm_ups):
        return
    steps = trainer.max_epochs if in_epochs else updates(data, trainer)[1]
    if steps < 0 and (open_lengths or shares):
        key = (open_lengths or shares)[0]
        raise UserError(f"optim.scheduler.{key}={scheduler[key]}: the run has no end. Give a number of {interval}s.")
    for key in shares:
        scheduler[key] = min(math.ceil(scheduler[key] * steps), max(0, steps - 1))
    for key in warm_ups:
        if 0 < steps <= scheduler[key]:
            raise UserError(
                f"optim.scheduler.{key}={scheduler[key]}: the warm-up is not shorter than the run, which is {steps} "
                f"{interval}s long. Give a smaller number, or a share of the run such as 0.1."
            )
    before = scheduler.get("warmup_t", 0) if scheduler.get("warmup_prefix") or "WSD" in scheduler._target_ else 0
    for key in open_lengths:
        scheduler[key] = max(1, steps - before)


def refuse_optim(distiller: Distiller, cfg: DictConfig, updates: int) -> None:
    """Refuse settings of optimizer and scheduler that torch refuses; a scheduler's may fail only in its first step.

    Raises:
        UserError: they are refused, or the scheduler ends before the run.
    """
    with _refused_by_torch("optim.optimizer"):  # made only to see whether it can be: the trainer makes its own
        optimizer = distiller.optim.make_optimizer(distiller.trainable())
    if optimizer.param_groups[0].get("lr") is None:
        raise UserError(
            f"optim.optimizer.lr: {type(optimizer).__name__} would choose a learning rate of its own. Give one (and "
            "relative_step=false for Adafactor of transformers)."
        )
    with _refused_by_torch("optim.scheduler"), warnings.catch_warnings(action="ignore"):
        scheduler = distiller.optim.make_scheduler(optimizer)
        if scheduler is None:
            return
        if not isinstance(scheduler, LRScheduler | TimmScheduler) or type(scheduler).__name__ == TIMM_PLATEAU:
            raise UserError(
                f"optim.scheduler._target_={cfg.optim.scheduler._target_} gives a {type(scheduler).__name__}, which "
                "cannot be stepped and resumed here. Choose a class of torch.optim.lr_scheduler or timm.scheduler "
                "(ReduceLROnPlateau of torch for one that watches a metric), or transformers.get_…_schedule…"
            )
        if isinstance(scheduler, ReduceLROnPlateau) and cfg.optim.monitor is None:
            raise UserError(f"optim.scheduler: choose it by _target_: torch.optim.lr_scheduler.{PLATEAU}")
        if not isinstance(scheduler, ReduceLROnPlateau):
            step(scheduler, 1, 1)  # torch warns that it is before the optimizer's
    # OneCycleLR refuses to step further, and transformers' cosine would rise again
    given = cfg.optim.scheduler.get("num_training_steps")
    key, length = ("num_training_steps", given) if given else ("total_steps", getattr(scheduler, "total_steps", None))
    taken = updates if cfg.optim.interval == "step" else cfg.trainer.max_epochs
    if length is not None and not 0 <= taken <= length:
        of_run = "without end" if taken < 0 else f"{taken} {cfg.optim.interval}s long"
        raise UserError(
            f"optim.scheduler.{key}: {cfg.optim.scheduler._target_.rpartition('.')[2]} ends after {length} steps, but "
            f"the run is {of_run}. {key}=null takes the run's own length."
        )


@contextmanager
def _refused_by_torch(path: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, ZeroDivisionError, AssertionError) as error:
        failed = str(error) or traceback.extract_tb(error.__traceback__)[-1].line  # timm's assertions say nothing
        raise UserError(f"{path}: these settings are refused: {failed}") from error
