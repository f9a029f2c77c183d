"""Experiment loggers: started with the run's config, closed with it."""

import sys
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from distillery.results.schema import RunRecord


def start(cfg: DictConfig, record: RunRecord) -> list[Logger]:
    """The config's loggers, each told the resolved config as plain values."""
    loggers = [instantiate(logger) for logger in cfg.logger.values() if logger is not None]
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    for logger in loggers:
        logger.log_hyperparams({**plain, "method": record.method})
    return loggers


def close(failed: bool) -> None:
    """Finish the W&B run, if one was opened: the next job of a sweep starts its own."""
    if "wandb" in sys.modules:
        import wandb

        wandb.finish(exit_code=1 if failed else 0)
