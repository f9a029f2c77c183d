"""cfg → Lightning's Trainer, with the callbacks of the config and those that every run has."""

import logging
import os
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PassThroughProfiler
from omegaconf import DictConfig

from distillery.config.check_cuda import GRAPHS
from distillery.config.instantiate import make
from distillery.core.errors import UserError
from distillery.core.terminal import plain_console
from distillery.runs.checkpoints import LastCheckpoint, WholeCheckpoints
from distillery.runs.progress_lines import ProgressLines
from distillery.training.callbacks.balance import Balance
from distillery.training.callbacks.follow_schedules import FollowSchedules
from distillery.training.callbacks.last_validation import LastValidation
from distillery.training.callbacks.random_state import RandomState


class NoProfiler(PassThroughProfiler):
    """Measures nothing in a fifth of the time: Lightning asks it at every hook of every callback."""

    def profile(self, action_name: str) -> nullcontext[str]:  # type: ignore[override]  # of the same use
        return nullcontext(action_name)


def hush_lightning() -> None:
    """Silence what Lightning remarks on the hardware that there is."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.distributed").setLevel(logging.WARNING)


def make_trainer(
    cfg: DictConfig, loggers: Sequence[Logger], callbacks: Sequence[L.Callback], first: Sequence[L.Callback] = ()
) -> L.Trainer:
    """Lightning's Trainer; its remarks on the setup are silenced.

    Args:
        callbacks: called after those of the config.
        first: callbacks that are called before them.

    Raises:
        UserError: settings that Lightning refuses, or hardware that is not there.
    """
    hush_lightning()
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval")  # TermMonitor logs each epoch
    warnings.filterwarnings("ignore", message=".*does not have many workers")  # images in memory need none
    warnings.filterwarnings("ignore", message=".*exists and is not empty")  # nor is a resumed run's folder
    warnings.filterwarnings("ignore", message=".*module.* in eval mode at the start")  # an average of the student is
    warnings.filterwarnings("ignore", message="Total length of `list` across")  # data without a validation split
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")  # Lightning's own use of torch
    if not torch.cuda.is_available():  # as Lightning sets it, Adam would look for NVIDIA's driver at each step
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor. is deprecated")  # DeepSpeed's
    own = [make(f"callbacks.{name}", config) for name, config in cfg.callbacks.items() if config is not None]
    objective = [Balance(cfg.objective.balance_steps, Path(cfg.paths.run))] if cfg.objective.balance else []
    moving = plain_console().is_terminal
    lines = [ProgressLines()] if cfg.trainer.enable_progress_bar and not moving else []
    callbacks = [*first, *own, FollowSchedules(), LastValidation(), *objective, *lines, *callbacks, RandomState()]
    # The last checkpoint comes after all other callbacks: it would store their state of the epoch before, and a run
    # that is killed in between would be resumed without their latest.
    callbacks.sort(key=lambda each: (isinstance(each, ModelCheckpoint), isinstance(each, LastCheckpoint)))
    try:
        settings = dict(instantiate(cfg.trainer))
        settings["profiler"] = settings.get("profiler") or NoProfiler()
        if not moving:
            settings["enable_progress_bar"] = False
        if cfg.compile == GRAPHS:  # recorded in inference mode, they break those of the training: pytorch#135892
            settings["inference_mode"] = False
        plugins = [WholeCheckpoints(), *settings.pop("plugins", [])]
        return L.Trainer(
            **settings,
            plugins=plugins,
            logger=loggers,
            callbacks=callbacks,
            default_root_dir=cfg.paths.run,
            use_distributed_sampler=False,  # the data module's own sampler gives each rank its share
            enable_model_summary=False,
            enable_checkpointing=any(isinstance(each, ModelCheckpoint) for each in callbacks),  # or Lightning makes one
        )
    except (MisconfigurationException, ModuleNotFoundError, TypeError, ValueError) as error:
        raise UserError(
            f"Lightning refuses the settings under `trainer`: {error} hardware=cpu runs on any machine."
        ) from error
