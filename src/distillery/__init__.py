"""Distillery: knowledge distillation with PyTorch Lightning and Hydra.

The names below work without YAML: see `docs/guides/library.md`. Nothing is imported before it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distillery.models.taps.network import Network as Network
    from distillery.tasks.classification import Classification as Classification
    from distillery.teachers.frozen import Teacher as Teacher
    from distillery.training.distiller import Distiller as Distiller
    from distillery.training.objective import Objective as Objective
    from distillery.training.optim import Optim as Optim
    from distillery.training.wiring import wire as wire

_MODULES = {
    "Classification": "distillery.tasks.classification",
    "Distiller": "distillery.training.distiller",
    "Network": "distillery.models.taps.network",
    "Objective": "distillery.training.objective",
    "Optim": "distillery.training.optim",
    "Teacher": "distillery.teachers.frozen",
    "wire": "distillery.training.wiring",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'distillery' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
