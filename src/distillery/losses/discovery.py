"""Finds the losses: every module of a family holds one term and the pure functions it is made of."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Container, Iterator, Sequence
from types import ModuleType

from torch import Tensor

import distillery.losses
from distillery.losses import FAMILIES
from distillery.losses.levels import Level
from distillery.losses.term import Term


def loss_modules(families: Sequence[str] = FAMILIES) -> Iterator[ModuleType]:
    """The modules of the losses, in the order of the families and by name."""
    for family in families:
        package = importlib.import_module(f"{distillery.losses.__name__}.{family}")
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            yield importlib.import_module(found.name)


def term_of(module: ModuleType) -> type[Term]:
    """The term that a loss's module defines."""
    (term,) = (member for member in _own(module) if inspect.isclass(member) and issubclass(member, Term))
    return term


def losses_for(levels: Container[Level]) -> list[str]:
    """What a user sets to learn from teachers that give no more than this of their distributions."""
    found = []
    for module in loss_modules():
        loss = term_of(module)
        name = module.__name__.rpartition(".")[2]
        for level, setting in loss.contract.below_logits.items():
            if level in levels:
                found.append(f"loss/response=[{name}]" + (f" with loss.{name}.{setting}" if setting else ""))
    return found


def functions_of(module: ModuleType) -> dict[str, Callable[..., Tensor]]:
    """The public functions that a loss's module defines, by name."""
    return {member.__name__: member for member in _own(module) if inspect.isfunction(member)}


def _own(module: ModuleType) -> list[object]:
    members = vars(module).items()
    return [m for name, m in members if getattr(m, "__module__", None) == module.__name__ and not name.startswith("_")]
