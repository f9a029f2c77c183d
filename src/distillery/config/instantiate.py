"""Instantiates nodes of a config, among them losses with several teachers and numbers with schedules."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from distillery.config.several_teachers import COMBINE
from distillery.config.stages import Schedules
from distillery.core.errors import UserError, named
from distillery.losses.several import Several
from distillery.losses.term import Term
from distillery.training.schedules import Progress

REFUSALS = (MisconfigurationException, TypeError, ValueError)  # how other packages refuse settings


def make_term(
    path: str, config: DictConfig, per_teacher: Sequence[Mapping[str, Any]], schedules: Schedules, seed: int
) -> Term:
    """The loss that the config at `path` describes, with one teacher or several (see `several_teachers`)."""
    shared = {str(key): value for key, value in config.items() if key != COMBINE}
    terms = [make_scheduled(path, OmegaConf.create({**shared, **own}), schedules) for own in per_teacher]
    if len(terms) == 1:
        return terms[0]
    try:
        return Several(terms, config.get(COMBINE, "mean"), seed)
    except UserError as error:
        raise named(path, error) from None


def make_scheduled(path: str, config: DictConfig, schedules: Schedules) -> Any:
    """Instantiate the config at `path` with the first values of its schedules.

    Raises:
        UserError: an extreme of a schedule is refused, or the number is read only when the object is made.
    """
    first = {name: schedule.value(Progress(0, 1)) for name, schedule in schedules.items()}
    for name, schedule in schedules.items():
        for value in schedule.values:
            with torch.random.fork_rng(devices=[]):  # a loss's own first weights are those without a schedule
                make(path, config, **{**first, name: value})
    made = make(path, config, **first)
    for name, value in first.items():
        if getattr(made, name, None) != value or name in getattr(made, "at_build", ()):
            raise UserError(f"{path}.{name} cannot have a schedule: it is read once, at the start.")
    return made


def make(path: str, config: DictConfig, **numbers: float) -> Any:
    """Instantiate the config at `path`, with these `numbers` in place of its own.

    Raises:
        UserError: the target refuses these settings.
    """
    try:
        return instantiate(config, **numbers)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise named(path, error.__cause__) from None
        if isinstance(error.__cause__, REFUSALS):
            raise UserError(f"{path}: {config._target_} refuses these settings: {error.__cause__}") from error
        raise
