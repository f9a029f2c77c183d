"""What `distill-train` does with its config: show the plan, go on with a run, or start one."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from distillery.build import build
from distillery.check import check
from distillery.errors import UserError
from distillery.networks import run_config
from distillery.plan import show_plan
from distillery.results.schema import RunRecord
from distillery.run import train


def command(cfg: DictConfig) -> float | None:
    """Returns the score that a sweeper maximises: the validation score of the last epoch."""
    try:
        return _run(cfg, list(HydraConfig.get().overrides.task))
    finally:
        with suppress(OSError):  # Hydra made the folders, also for a run that was refused or only planned
            os.removedirs(os.path.relpath(HydraConfig.get().runtime.output_dir))  # up to the first that is not empty


def _run(cfg: DictConfig, overrides: list[str]) -> float | None:
    if cfg.resume:
        cfg = resumed(Path(cfg.resume), overrides)
    if cfg.plan:
        check(cfg, overrides)
        show_plan(build(cfg))
        return None
    result = train(cfg, overrides)
    show_result(result.record, result.folder)
    return result.record.metrics.get("last", {}).get("val_score")


def resumed(folder: Path, overrides: list[str]) -> DictConfig:
    """The config of the run in `folder`, which may have been moved.

    Raises:
        UserError: an override which that run did not have: its config is what is resumed.
    """
    own = RunRecord.read(folder).overrides
    if foreign := [o for o in overrides if o not in own and not o.startswith("resume=")]:
        raise UserError(
            f"A resumed run takes its config from its folder, and {', '.join(foreign)} is not part of it. "
            "Leave it out, or start a new run with it."
        )
    plain = OmegaConf.to_container(run_config(str(folder), "student"))
    assert isinstance(plain, dict)
    cfg: DictConfig = OmegaConf.create(_moved(plain, plain["paths"]["run"], str(folder)))
    cfg.resume = str(folder)
    return cfg


def _moved(value: Any, old: str, new: str) -> Any:
    """`value` with every path in `old` replaced by the same in `new`."""
    if isinstance(value, dict):
        return {key: _moved(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, old, new) for item in value]
    inside = isinstance(value, str) and Path(value).is_relative_to(old)
    return str(Path(new) / Path(value).relative_to(old)) if inside else value


def show_result(record: RunRecord, folder: Path) -> None:
    """One line to read, one to copy."""
    console = Console(soft_wrap=True, highlight=False)
    last = record.metrics.get("last")
    if last:
        val = "" if last["val_score"] is None else f", validation {last['val_score']:.4f}"
        perplexity = f", perplexity {last['perplexity']:.2f}" if "perplexity" in last else ""
        console.print(
            f"[bold]{record.method}[/] seed {record.seed}: test score {last['test_score']:.4f}{val}{perplexity}"
        )
        console.print(f"distill-evaluate run={folder}")
