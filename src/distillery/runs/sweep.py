"""One job of a sweep (`distill-train -m`)."""

import math
import statistics
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from distillery.config.check import check
from distillery.config.explain import user_message
from distillery.config.hydra_support import score_mode
from distillery.config.stages import RunSpec
from distillery.core.process import is_main
from distillery.core.terminal import say, show_error
from distillery.results.record import RunRecord
from distillery.runs.budget import OverBudget
from distillery.runs.export.candidate import validated
from distillery.runs.job import Job
from distillery.runs.loggers import hush
from distillery.runs.run import run_job
from distillery.runs.show_result import show_result
from distillery.runs.sweep_journal import note, noted, sweep_folder
from distillery.tasks.metrics import SCORE

FAR = 1e6  # worse than any score, and better than that of a job that failed


def sweep_job(cfg: DictConfig, overrides: Sequence[str]) -> float | None:
    """Run the job unless it is finished. An error is printed and recorded, and does not stop the other jobs.

    A job whose seed is a list trains each of them, in a folder of its own. A student over the budget of `target` is not
    trained.

    Returns:
        The validation score, or what `task.monitor` names: the mean over the seeds, also of a job that was kept. With a
        budget, that of the exported student. Of a job over the budget, a value beyond all scores, and the worse the
        further over it the student is, from which a search learns; of one that fails the worst value there is, since
        Optuna accepts neither NaN nor an exception.
    """
    hush(cfg)
    measured: dict[str, dict[str, Any]] = {}
    if not isinstance(cfg.seed, ListConfig):
        return _run(cfg, overrides, measured)
    scores = []
    for seed in cfg.seed:
        own = cfg.copy()
        own.seed = seed
        own.paths.run = str(Path(cfg.paths.run) / f"seed{seed}")
        others = [override for override in overrides if not override.startswith("seed=")]
        scores.append(_run(own, [*others, f"seed={seed}"], measured))
    known = [score for score in scores if score is not None]
    return statistics.fmean(known) if known else None


def _run(cfg: DictConfig, overrides: Sequence[str], measured: dict[str, dict[str, Any]]) -> float | None:
    best = score_mode(cfg.task._target_, cfg.task.get("monitor", SCORE))
    worst = -math.inf if best == "max" else math.inf
    job = Job(RunSpec(cfg, []), overrides)  # as far as it is known if the check refuses it
    try:
        job = Job(check(cfg, overrides), overrides, measured=measured, group=sweep_folder())
        budget = job.budget
        if budget and (folder := _of_same_student(job)):
            cfg = cfg.copy()
            cfg.paths.run = folder
            job = Job(check(cfg, overrides), overrides, measured=measured, group=sweep_folder())
        result = run_job(job)
        score = result.record.val_monitored
        if budget and is_main():
            score = validated(budget, result.record, result.folder)
    except OverBudget as over:
        if is_main():
            job.record_failure(over)
            say(f"{job.folder.name}: over budget, not trained: {over.said}")
            note("over budget", job.folder, cfg.seed, target=over.target)
        return math.copysign(FAR * over.excess, worst)
    except Exception as error:
        if is_main():
            job.record_failure(error)
            message = user_message(error, "train") or "".join(traceback.format_exception(error))
            show_error(f"{job.folder.name}: {message}")
            note("failed", job.folder, cfg.seed)
        return worst
    if is_main():
        if result.kept:
            say(f"{job.folder.name}: kept")
        else:
            show_result(result.record, result.folder)
        taken = budget.noted(result.record) if budget else None
        note("kept" if result.kept else "run", job.folder, cfg.seed, score, taken)
    return score


def _of_same_student(job: Job) -> str | None:
    """The folder of an earlier job of this sweep that trains the same student: for another format, or drawn twice."""
    for folder in (each["folder"] for each in noted() if each["outcome"] != "failed"):
        record = RunRecord.read(Path(folder))
        if record.config_hash == job.autotuned(record.autotune).identity():
            return str(folder)
    return None
