"""The names of a config's teachers, losses and method."""

import re
from collections.abc import Mapping
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig

BASELINE = "baseline"
NAME = re.compile(r"[A-Za-z0-9._+-]+")  # names that become folders


def teachers_of(cfg: DictConfig) -> Mapping[str, Any]:
    """The teachers by name; none if `model/teacher=none` was chosen, whatever an experiment sets of them."""
    teachers = cfg.teachers
    if not isinstance(teachers, Mapping) or (isinstance(main := teachers.get("main"), Mapping) and "none" in main):
        return {}
    return teachers


def losses_of(cfg: DictConfig) -> Mapping[str, Any]:
    """The chosen distillation losses by name; none without a teacher.

    The settings of an experiment for a loss that the command line has deselected have no `_target_`.
    """
    chosen = {name: loss for name, loss in cfg.loss.items() if isinstance(loss, Mapping) and "_target_" in loss}
    return chosen if teachers_of(cfg) else {}


def method_name(cfg: DictConfig) -> str:
    """The short names of the run's losses, `kd+at`; `baseline` without a teacher; of stages their names, `hint-kd`.

    A loss under a key of its own (`loss.kd_b`) is called by that key.
    """
    if isinstance(stages := cfg.get("stages"), Mapping) and stages:
        return "-".join(map(str, stages))
    return "+".join(_short_name(key, loss._target_) for key, loss in losses_of(cfg).items()) or BASELINE


def _short_name(key: str, target: str) -> str:
    default_key = target.split(".")[-2]  # distillery.losses.<family>.<name>.<Term>
    term: Any = get_class(target)
    return term.contract.short_name if key == default_key else key
