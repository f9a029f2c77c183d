"""Hydra's entry point: one place for config search, resolvers, versions of Hydra, and how errors are shown.

Imports nothing heavy: `--help`, `--cfg job` and TAB are answered before torch is imported.
"""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
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
                from distillery.explain import explain

                sys.exit(_show(explain(error, config_name)))

        return main

    return decorate


def _show(message: str) -> int:
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True)
    console.print("[bold red]error[/] ", end="")
    console.print(message, markup=False, highlight=False)
    return 2


def register_resolvers() -> None:
    """`${method:}`: the run's losses as one word, e.g. `kd+at`; `${run_dir:default}`: where a run goes;
    `${group:}`: the runs that it belongs to."""
    OmegaConf.register_new_resolver("method", _method, replace=True)
    OmegaConf.register_new_resolver("group", _group, replace=True)
    OmegaConf.register_new_resolver("run_dir", _run_dir, replace=True)


def _method(*, _root_: DictConfig) -> str:
    from distillery.names import method_name

    return method_name(_root_)


def _run_dir(default: str, *, _root_: DictConfig) -> str:
    """The folder of a new run, or of the run that is resumed."""
    return str(_root_.resume) if _root_.get("resume") else default


def _group(*, _root_: DictConfig) -> str:
    """The sweep of a sweep's job, `<name>_<its folder's name>`; otherwise the experiment's name."""
    if HydraConfig.initialized() and (own := HydraConfig.get()).mode == RunMode.MULTIRUN:
        return f"{_root_.name}_{Path(own.sweep.dir).name}"
    return str(_root_.name)
