"""How a command begins: Hydra composes the config; errors that the user can fix are shown without a traceback.

Imports nothing heavy: `--help`, `--cfg job` and TAB are answered before torch is imported.
"""

import functools
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig

from distillery.config.command_line import expand_home
from distillery.config.explain import refuse_added, user_message
from distillery.config.hydra_support import BEFORE_1_4, HYDRA_VERSION, register_resolvers
from distillery.core.errors import UserError
from distillery.core.paths import CONFIGS

# What `_target_` may name in a config: a list that Hydra 1.4 asks for and 1.3 does not know. Add your own package.
TARGETS = ("distillery.*", "torch.*", "torchvision.*", "lightning.pytorch.*", "timm.*", "torchmetrics.*")
MULTIRUN = ("-m", "--multirun")
WHITELIST: dict[str, Any] = {} if BEFORE_1_4 else {"execution_whitelist": TARGETS}


def hydra_main(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make `function(cfg)` a command that composes `configs/<config_name>.yaml` and runs it.

    An error that the user can fix (`UserError`, a config that does not compose, an output folder that cannot be made)
    is printed, and the command exits with 2. Any other error keeps its full traceback, which Hydra would cut.
    """

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(function)
        def main() -> None:
            composed = False

            @functools.wraps(function)
            def shown_here(cfg: DictConfig) -> Any:  # outside of Hydra, which would first print which job it was
                nonlocal composed
                composed = True
                with errors_shown(config_name):
                    refuse_added(config_name)
                    return function(expand_home(cfg))

            register_resolvers()
            os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to the handler here
            sys.argv[1:] = sorted(sys.argv[1:], key=lambda each: each not in MULTIRUN)  # argparse: not amid overrides
            with errors_shown(config_name):
                try:
                    hydra.main(config_path=str(CONFIGS), config_name=config_name, **HYDRA_VERSION, **WHITELIST)(
                        shown_here
                    )()
                except OSError as error:
                    if composed or isinstance(error, HydraException | BrokenPipeError):
                        raise
                    raise UserError(  # Hydra makes the folder before it calls the function
                        f"The output folder cannot be made: {error}. Choose another one: hydra.run.dir=…, for a sweep "
                        "hydra.sweep.dir=…"
                    ) from error

        return main

    return decorate


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Around a command's imports, which stand in its function: --help, --cfg and TAB are answered without them.

    Meanwhile Python looks for no garbage, and afterwards never among what was imported: a plan takes a third less time.
    """
    gc.disable()
    yield
    if not gc.get_freeze_count():  # else a former job of a sweep, which is garbage by now, would be kept
        gc.freeze()
    gc.enable()


@contextmanager
def errors_shown(config_name: str) -> Iterator[None]:
    """Within: an error that the user can fix is printed, and the command exits with 2."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough: `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python flushes at its end
    except Exception as error:
        if (message := user_message(error, config_name)) is None:
            raise
        from distillery.core.terminal import show_error

        show_error(message)
        sys.exit(2)
