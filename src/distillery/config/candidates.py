"""Settings that are left open: `compile: auto`, or several precisions. A run times their values and keeps one of each.

Until then each has the first of its values, with which everything that trains nothing is built: plans, caches.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from distillery.config.check_cuda import GRAPHS, has_cuda
from distillery.core.kinds import shown

AUTO = "auto"
COMPILE = "compile"
PRECISION = "trainer.precision"

Candidates = Mapping[str, Sequence[Any]]


def candidates(cfg: DictConfig) -> dict[str, list[Any]]:
    """The values of each setting that is open, in the order in which they are tried."""
    found: dict[str, list[Any]] = {}
    trainer = cfg.get("trainer")
    precisions = trainer.get("precision") if isinstance(trainer, DictConfig) else None
    if isinstance(precisions, ListConfig) and precisions:
        found[PRECISION] = list(precisions)
    cuda = isinstance(trainer, DictConfig) and has_cuda(trainer)
    switches: dict[str, list[Any]] = {
        "channels_last": [False, True],
        "fold_batchnorms": [False, True],
        "teacher_stream": [False, *([True] if cuda else [])],
        "step_graph": [False, *([True] if cuda else [])],
        COMPILE: [False, True, *([GRAPHS] if cuda else [])],  # last: it takes longest, of networks as they are
    }
    return found | {name: values for name, values in switches.items() if cfg.get(name) == AUTO}


def with_values(cfg: DictConfig, values: Mapping[str, Any]) -> DictConfig:
    """The config with these values of settings, by their paths; without any, the config itself."""
    if not values:
        return cfg
    cfg = cfg.copy()
    OmegaConf.set_struct(cfg, False)
    for path, value in values.items():
        OmegaConf.update(cfg, path, value)
    return cfg


def untimed(settings: Candidates) -> str:
    """What to tell the user where settings stay open."""
    given = ", ".join(f"{name}={shown(value)}" for name, value in first_values(settings).items())
    return f"plan=true times nothing. What is open is planned with its first value: {given}."


def first_values(of: Candidates) -> dict[str, Any]:
    """The first value of each setting."""
    return {name: values[0] for name, values in of.items()}
