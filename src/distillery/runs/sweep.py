"""One job of a sweep (`distill-train -m`)."""

import math
import statistics
import traceback
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from distillery.config.check import check
from distillery.config.explain import user_message
from distillery.config.hydra_support import score_mode
from distillery.config.stages import RunSpec
from distillery.core.process import is_main
from distillery.core.terminal import say, show_error
from distillery.runs.job import Job
from distillery.runs.run import run_job
from distillery.runs.show_result import show_result
from distillery.runs.sweep_summary import note
from distillery.tasks.metrics import SCORE


def sweep_job(cfg: DictConfig, overrides: Sequence[str]) -> float | None:
    """Run the job unless it is finished. An error is printed and recorded, and does not stop the other jobs.

    A job whose seed is a list trains each of them, in a folder of its own.

    Returns:
        The validation score, or what `task.monitor` names: the mean over the seeds, also of a job that was kept; of one
        that fails the worst score there is, since Optuna accepts neither NaN nor an exception.
    """
    if not isinstance(cfg.seed, ListConfig):
        return _run(cfg, overrides)
    scores = []
    for seed in cfg.seed:
        own = cfg.copy()
        own.seed = seed
        own.paths.run = str(Path(cfg.paths.run) / f"seed{seed}")
        others = [override for override in overrides if not override.startswith("seed=")]
        scores.append(_run(own, [*others, f"seed={seed}"]))
    known = [score for score in scores if score is not None]
    return statistics.fmean(known) if known else None


def _run(cfg: DictConfig, overrides: Sequence[str]) -> float | None:
    job = Job(RunSpec(cfg, []), overrides)  # as far as it is known if the check refuses it
    try:
        job = Job(check(cfg, overrides), overrides)
        result = run_job(job)
    except Exception as error:
        if is_main():
            job.record_failure(error)
            message = user_message(error, "train") or "".join(traceback.format_exception(error))
            show_error(f"{job.folder.name}: {message}")
            note("failed", job.folder)
        return -math.inf if score_mode(cfg.task._target_, cfg.task.get("monitor", SCORE)) == "max" else math.inf
    if is_main():
        if result.kept:
            say(f"{job.folder.name}: kept")
        else:
            show_result(result.record, result.folder)
        note("kept" if result.kept else "run", job.folder, result.record.val_monitored)
    return result.record.val_monitored
