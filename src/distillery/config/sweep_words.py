"""What tells a run from the others of its sweep, in words. Imports nothing heavy before there is a run."""

import json
import os
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig

SWEPT = "DISTILLERY_SWEPT"  # the settings that the sweep varies, for its jobs in whichever process they run
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

    The losses are left out, since the method says which they are. Where a search draws the values, and may draw some
    twice, `trial=3` comes first.
    """
    words = []
    if HydraConfig.initialized() and (own := HydraConfig.get()).mode == RunMode.MULTIRUN:
        from distillery.results.report.settings import short_names

        swept = swept_values()
        losses = () if "method" in _parsed(own.overrides.task) else ("loss/",)
        names = short_names([key for key in swept if key != "seed" and not key.startswith(losses)])
        words = [] if own.sweeper._target_ == GRID else [f"trial={own.job.num}"]
        words += [f"{name}={shown(swept[key])}" for key, name in names.items()]
    return [*words, f"seed={cfg.seed}"]


def shown(written: str) -> str:
    """A value of an override as it is shown."""
    from distillery.results.report.settings import in_label

    return in_label(OverridesParser.create().parse_override(f"k={written}").value())


def _parsed(overrides: Any) -> dict[str, Override]:
    """By setting; of several overrides the last one counts."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return {override.get_key_element().lstrip("+~"): override for override in parsed}
