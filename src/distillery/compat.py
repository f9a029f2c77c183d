"""Hydra's entry point: one place for config search, resolvers, versions of Hydra, and how errors are shown.

Imports nothing heavy: `--help`, `--cfg job` and TAB are answered before torch is imported.
"""

import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distillery.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
# What `_target_` may name.
TARGETS = ("distillery.*", "torch.*", "torchvision.*", "lightning.pytorch.*", "timm.*", "torchmetrics.*")
# Hydra 1.3 wants a `version_base`, which 1.4 deprecates; 1.4 wants an execution whitelist, which 1.3 doesn't know.
_BEFORE_1_4 = tuple(int(part) for part in hydra.__version__.split(".")[:2]) < (1, 4)
HYDRA_VERSION: dict[str, Any] = {"version_base": "1.3"} if _BEFORE_1_4 else {"execution_whitelist": TARGETS}


def hydra_main(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make `function(cfg)` a command: composes `configs/<config_name>.yaml`, then runs it.

    What the user can mend (`UserError`, a config that doesn't compose) is printed and exits with 2. Anything else
    keeps its full traceback, which Hydra would cut.
    """

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(function)
        def main() -> None:
            register_resolvers()
            os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to the handler below
            try:
                hydra.main(config_path=str(CONFIGS), config_name=config_name, **HYDRA_VERSION)(function)()
            except UserError as error:
                sys.exit(_show(str(error)))
            except (HydraException, OmegaConfBaseException) as error:
                sys.exit(_show(_with_nearest_key(error, config_name)))

        return main

    return decorate


def _show(message: str) -> int:
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True)
    console.print("[bold red]error[/] ", end="")
    console.print(message, markup=False, highlight=False)
    return 2


def _with_nearest_key(error: Exception, config_name: str) -> str:
    """Hydra's message; where it is about an unknown key, the nearest known ones instead of its advice to append it."""
    cause = error.__cause__
    message = str(error) if cause is None else f"{error}\n{cause}"
    unknown = re.match(r"Could not override '([^']+)'", str(error))
    if not unknown:
        return message
    from distillery.check import nearest_key

    groups = [override for override in sys.argv[1:] if (CONFIGS / re.split("[@=]", override)[0]).is_dir()]
    with hydra.initialize_config_dir(str(CONFIGS), **HYDRA_VERSION):
        known = hydra.compose(config_name, overrides=[group for group in groups if "," not in group])
    return f"Unknown setting {unknown[1]!r}. {nearest_key(known, unknown[1])}"


def register_resolvers() -> None:
    """`${method:}`: the run's losses as one word, e.g. `kd+at`; `${run_dir:default}`: where a run goes."""
    OmegaConf.register_new_resolver("method", _method, replace=True)
    OmegaConf.register_new_resolver("run_dir", _run_dir, replace=True)


def _method(*, _root_: DictConfig) -> str:
    from distillery.names import method_name

    return method_name(_root_)


def _run_dir(default: str, *, _root_: DictConfig) -> str:
    """The folder of a new run, or of the run that is resumed."""
    return str(_root_.resume) if _root_.get("resume") else default
