"""What `distill-train` does with its config: show the plan, go on with a run, or start one, alone or in a sweep."""

import math
import os
import traceback
from contextlib import suppress
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from distillery.commands.entry import show, told
from distillery.config.check import check
from distillery.config.networks import run_config
from distillery.core.errors import UserError
from distillery.core.process import is_main
from distillery.results.record import RunRecord
from distillery.runs.checkpoints import moved
from distillery.runs.job import Job
from distillery.runs.run import train
from distillery.runs.stages.sequence import StageSequence
from distillery.runs.sweep import note


def command(cfg: DictConfig) -> float | None:
    """Returns the score that a sweeper maximises: the validation score of the last epoch."""
    own, overrides = HydraConfig.get(), list(HydraConfig.get().overrides.task)
    try:
        if cfg.resume:
            folder = Path(cfg.resume)
            cfg = resumed(folder, overrides)
            if RunRecord.read(folder).status == "finished":
                raise UserError(f"{folder} is finished: there is nothing left to train. distill-evaluate run={folder}")
        elif own.mode == RunMode.MULTIRUN and not cfg.plan:
            folder = Path(cfg.paths.run)
            return sweep_job(Job(folder.name, folder, overrides, cfg))
        if cfg.plan:
            check(cfg, overrides)
            StageSequence(cfg).rehearse(show=True)
            return None
        result = train(cfg, overrides)
        show_result(result.record, result.folder)
        return val_score(result.record)
    finally:
        with suppress(OSError):  # Hydra made the folders, also for a run that was refused or only planned
            os.removedirs(os.path.relpath(own.runtime.output_dir))  # up to the first that is not empty


def sweep_job(job: Job) -> float | None:
    """Run what is missing of a sweep's job. Of one that fails the error is told and recorded, and the others go on.

    Returns:
        The validation score, also of a job that was finished before; of one that fails the worst there is: optuna
        takes neither NaN nor an exception for an answer.
    """
    try:
        kept = job.finished()
        record = kept or job.go_on()
    except Exception as error:
        if is_main():
            show(f"{job.label}: " + (told(error, "train") or "".join(traceback.format_exception(error))))
            note("failed", job.folder)
        return -math.inf
    if is_main():
        if kept:
            print(f"{job.label}: kept")
        else:
            show_result(record, job.folder)
        note("kept" if kept else "run", job.folder)
    return val_score(record)


def val_score(record: RunRecord) -> float | None:
    score: float | None = record.metrics.get("last", {}).get("val_score")
    return score


def resumed(folder: Path, overrides: list[str]) -> DictConfig:
    """The config of the run in `folder`, which may have been moved.

    Raises:
        UserError: an override which that run did not have: its config is what is resumed.
    """
    record = RunRecord.read(folder)
    if foreign := [o for o in overrides if o not in record.overrides and not o.startswith("resume=")]:
        raise UserError(
            f"A resumed run takes its config from its folder, and {', '.join(foreign)} is not part of it. "
            "Leave it out, or start a new run with it."
        )
    plain = OmegaConf.to_container(run_config(str(folder), "resume"))
    assert isinstance(plain, dict)
    cfg: DictConfig = OmegaConf.create(moved(plain, plain["paths"]["run"], str(folder)))
    cfg.resume = str(folder)
    return cfg


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
        if ensemble := record.metrics.get("ensemble"):
            console.print(f"ensemble of stages: test score {ensemble['test_score']:.4f}")
        console.print(f"distill-evaluate run={folder}")
