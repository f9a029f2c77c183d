"""What a config describes, made: with one teacher or several, with numbers that a schedule changes."""

from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from distillery.config.several_teachers import COMBINE, per_teacher
from distillery.core.errors import UserError
from distillery.losses.several import Several
from distillery.losses.term import Term
from distillery.training.schedules import Progress, Schedule, schedules_in

REFUSALS = (MisconfigurationException, TypeError, ValueError)  # of settings, by those who are not ours


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
    """What the config at `path`, with these `numbers`, describes.

    Raises:
        UserError: what it names refuses these settings.
    """
    try:
        return instantiate(config, **numbers)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise UserError(f"{path}: {error.__cause__}") from None
        if isinstance(error.__cause__, REFUSALS):
            raise UserError(f"{path}: {config._target_} refuses these settings: {error.__cause__}") from error
        raise
