"""Which folders Hydra makes for a run, so that a run that is refused, or only planned, leaves none of them behind.

Imports nothing heavy: Hydra makes the callback for every command.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

_new: list[Path] = []  # the folders that did not exist before this command, the innermost first


class NewFolders(Callback):
    """Notes which folders Hydra is about to make for a run. Listed under `hydra.callbacks`."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        folder = Path(config.hydra.run.dir).absolute()
        _new[:] = [each for each in (folder, *folder.parents) if not each.exists()]


def remove_new_folders() -> None:
    """Remove those folders again, as far as they are empty; of a sweep's job only its own folder."""
    own = HydraConfig.get()
    made = [Path(own.runtime.output_dir)] if own.mode == RunMode.MULTIRUN else _new
    with suppress(OSError):  # not empty: a run is there
        for folder in made:
            folder.rmdir()
