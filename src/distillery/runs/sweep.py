"""One job of a sweep (`distill-train -m`)."""

import math
import traceback
from collections.abc import Sequence

from omegaconf import DictConfig

from distillery.config.check import check
from distillery.config.explain import user_message
from distillery.config.stages import RunSpec
from distillery.core.process import is_main
from distillery.core.terminal import say, show_error
from distillery.runs.job import Job
from distillery.runs.run import run_job
from distillery.runs.show_result import show_result
from distillery.runs.sweep_summary import note


def sweep_job(cfg: DictConfig, overrides: Sequence[str]) -> float | None:
    """Run the job unless it is finished. An error is printed and recorded, and does not stop the other jobs.

    Returns:
        The validation score, also of a job that was kept; of one that fails the worst score there is, since Optuna
        accepts neither NaN nor an exception.
    """
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
        return -math.inf
    if is_main():
        if result.kept:
            say(f"{job.folder.name}: kept")
        else:
            show_result(result.record, result.folder)
        note("kept" if result.kept else "run", job.folder)
    return result.record.val_score
