"""Optimizer and scheduler: makes room for other ones, fills in what depends on the run, refuses what torch refuses."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch.optim.lr_scheduler import ReduceLROnPlateau

from distillery.config.command_line import settings_in
from distillery.config.targets import HYDRA, imported, parameters
from distillery.core.errors import UserError
from distillery.core.process import processes
from distillery.core.terminal import say
from distillery.data.module import Data
from distillery.training.distiller import Distiller

PLATEAU = ReduceLROnPlateau.__name__  # the scheduler that watches a metric


def without_leftovers(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The config without the settings of an optimizer or a scheduler that the command line has replaced by another.

    Where an override gives `optim.optimizer._target_`, or the scheduler's, the files' settings that the new target does
    not take are left out, and named on the terminal. Those that an override gives stay, to be refused.
    """
    given = settings_in([override for override in overrides if "optim." in override])
    cfg = cfg.copy()
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
    return cfg


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


def complete_optim(optim: DictConfig, trainer: DictConfig, data: Data) -> DictConfig:
    """The settings with what depends on the run filled in where they leave it open: a schedule's length and metric.

    Raises:
        UserError: a metric for a scheduler that watches none, or a scheduler that does and steps after each update.
    """
    scheduler = optim.scheduler
    if scheduler is not None and scheduler.get("total_steps", 0) is None:
        scheduler.total_steps = updates(data, trainer)[1]
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
        of_mode = {"min": "val/loss" if is_validated(data, trainer) else "loss", "max": "val/score"}
        optim.monitor = of_mode[scheduler.get("mode", "min")]
    return optim


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
    with _refused_by_torch("optim.scheduler"):
        scheduler = distiller.optim.make_scheduler(optimizer)
        if scheduler is None:
            return
        if not isinstance(scheduler, ReduceLROnPlateau):
            with warnings.catch_warnings(action="ignore"):  # of a step before the optimizer's
                scheduler.step()
    length = getattr(scheduler, "total_steps", None)  # OneCycleLR refuses to step further
    taken = updates if cfg.optim.interval == "step" else cfg.trainer.max_epochs
    if length is not None and not 0 <= taken <= length:
        of_run = "without end" if taken < 0 else f"{taken} {cfg.optim.interval}s long"
        raise UserError(
            f"optim.scheduler.total_steps: {type(scheduler).__name__} ends after {length} steps, and the run is "
            f"{of_run}. total_steps=null with interval=step takes the run's own length."
        )


@contextmanager
def _refused_by_torch(path: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{path}: these settings are refused: {error}") from error
