"""Refuses a student that takes more than its budget, before it is trained.

What its export takes is in the run's record, and not measured again. What exports imports the models of transformers,
which takes half a second, and so only where there is a budget.
"""

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from distillery.config.build import Parts
from distillery.core.process import is_main
from distillery.core.terminal import say, telling
from distillery.results.exports import Measured
from distillery.results.record import RunRecord
from distillery.runs.budget import FORMAT, OverBudget
from distillery.runs.job import Job


def refuse_missing_format(job: Job) -> None:
    """Refuse a budget for a format whose packages are missing. Raises UserError."""
    if budget := job.budget:
        from distillery.runs.export.formats.registry import installed

        installed(budget.format, FORMAT)


def refuse_over_budget(job: Job, record: RunRecord, parts: Parts | None = None) -> None:
    """Refuse a student that takes more than the budget of its job, if there is one.

    Args:
        record: of the run; it is given the measurement, unless it has one.
        parts: of the run, which is about to begin; None: it is finished, or measured.

    Raises:
        OverBudget: the student is over the budget.
        UserError: it cannot be exported to the format.
    """
    budget = job.budget
    if budget is None or not is_main():
        return
    if not job.is_measured(record):
        if budget.format not in job.measured:
            from distillery.runs.export.candidate import measure
            from distillery.runs.export.exportable import exportable, untrained

            with TemporaryDirectory(prefix="distillery-") as scratch:
                model = untrained(parts, Path(scratch)) if parts else exportable(job.folder, Path(scratch))
                job.measured[budget.format] = asdict(measure(budget.format, model))
        record.target[budget.format] = {"measured": job.measured[budget.format]}
    taken = Measured(**record.target[budget.format]["measured"])
    if budget.excess(taken) > 1:
        raise OverBudget(budget, taken, record)
    if parts and telling():
        say(f"Within the budget: {budget.compared(taken)}")
