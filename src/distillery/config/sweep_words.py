"""What tells a run from the others of its sweep, in words. Imports nothing heavy before there is a run."""

import json
import os
import re
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig

SWEPT = "DISTILLERY_SWEPT"  # the settings that the sweep varies, for its jobs in whichever process they run
LONGEST = 100  # a job's number stands before it, so that what is cut off makes no two folders one
GRID = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def swept_settings(config: DictConfig) -> list[str]:
    """The settings that a sweep varies, on the command line or in `hydra.sweeper.params`.

    Args:
        config: of the sweep, with Hydra's own part.
    """
    return [key for key, override in _parsed(arguments(config)).items() if override.is_sweep_override()]


def arguments(config: DictConfig) -> list[str]:
    """All overrides of a sweep as its sweeper reads them: `hydra.sweeper.params`, then those of the command line."""
    params = (config.hydra.sweeper.get("params") or {}).items()
    return [*(f"{key}={value}" for key, value in params), *config.hydra.overrides.task]


def swept_values() -> dict[str, str]:
    """What a job of a sweep has of the settings that the sweep varies, as it is written in its overrides."""
    given = _parsed(HydraConfig.get().overrides.task)
    keys = json.loads(os.environ.get(SWEPT, "[]"))
    return {key: given[key].get_value_element_as_str() for key in keys if key in given}


def differences(cfg: DictConfig) -> list[str]:
    """`["temperature=4", "seed=1"]`: of a job of a sweep what the sweep varies; of any run its seed.

    Where a search draws the values, and may draw some twice, `trial=3` comes first.
    """
    words = swept_words()
    if _in_sweep() and (own := HydraConfig.get()).sweeper._target_ != GRID:
        words = [f"trial={own.job.num}", *words]
    return [*words, f"seed={cfg.seed}"]


def swept_words() -> list[str]:
    """`["temperature=4"]`: of a job of a sweep what the sweep varies, but for the seed; empty of any other run.

    Method and losses are left out, since the method says which they are.
    """
    if not _in_sweep():
        return []
    from distillery.results.report.settings import short_names

    swept = swept_values()
    losses = () if "method" in _parsed(HydraConfig.get().overrides.task) else ("loss/",)
    names = short_names([key for key in swept if key not in ("seed", "method") and not key.startswith(losses)])
    return [f"{name}={shown(swept[key])}" for key, name in names.items()]


def folder_words() -> str:
    """The same as part of a folder's name, `_temperature-4_widths-8-16`, cut off after `LONGEST` characters.

    It needs no quotes in an override: `run=sweep/0_kd_temperature-4_seed0`.
    """
    words = (re.sub(r"[^\w.+-]+", "-", word, flags=re.ASCII).strip("-") for word in swept_words())
    return "".join(f"_{word}" for word in words)[:LONGEST]


def _in_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def shown(written: str) -> str:
    """A value of an override as it is shown."""
    from distillery.results.report.settings import in_label

    return in_label(OverridesParser.create().parse_override(f"k={written}").value())


def _parsed(overrides: Any) -> dict[str, Override]:
    """By setting; of several overrides the last one counts."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return {override.get_key_element().lstrip("+~"): override for override in parsed}
