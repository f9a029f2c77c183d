"""The commands' way in: Hydra composes the config, and errors are shown as what the user can mend.

Imports nothing heavy: `--help`, `--cfg job` and TAB are answered before torch is imported.
"""

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from distillery.config.explain import explain, explain_null
from distillery.config.hydra_support import BEFORE_1_4, HYDRA_VERSION, register_resolvers
from distillery.core.errors import UserError
from distillery.core.paths import CONFIGS

# What `_target_` may name in a config: a list that Hydra 1.4 wants and 1.3 doesn't know. Add your own package.
TARGETS = ("distillery.*", "torch.*", "torchvision.*", "lightning.pytorch.*", "timm.*", "torchmetrics.*")
WHITELIST: dict[str, Any] = {} if BEFORE_1_4 else {"execution_whitelist": TARGETS}


def hydra_main(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make `function(cfg)` a command: composes `configs/<config_name>.yaml`, then runs it.

    What the user can mend (`UserError`, a config that doesn't compose) is printed and exits with 2. Anything else
    keeps its full traceback, which Hydra would cut.
    """

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(function)
        def told_here(cfg: DictConfig) -> Any:  # Hydra would say of it first, which job it was
            with mended(config_name):
                return function(cfg)

        @functools.wraps(function)
        def main() -> None:
            register_resolvers()
            os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to the handler here
            with mended(config_name):
                hydra.main(config_path=str(CONFIGS), config_name=config_name, **HYDRA_VERSION, **WHITELIST)(told_here)()

        return main

    return decorate


@contextmanager
def mended(config_name: str) -> Iterator[None]:
    """Within: what the user can mend is printed, and exits with 2."""
    try:
        yield
    except Exception as error:
        if (message := told(error, config_name)) is None:
            raise
        show(message)
        sys.exit(2)


def told(error: Exception, config_name: str) -> str | None:
    """What the user is told of an error that is theirs to mend; None of any other."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return explain(error, config_name)
    return explain_null(error) if isinstance(error, ValueError) else None


def show(message: str) -> None:
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True)
    console.print("[bold red]error[/] ", end="")
    console.print(message, markup=False, highlight=False)
