"""A student with a budget: what its export takes, before it is trained, and what it scores afterwards.

Both are in the run's record, and are not measured again. The files are not kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from distillery.config.build import Parts
from distillery.core.errors import UserError
from distillery.core.process import is_main
from distillery.core.terminal import say, telling
from distillery.results.exports import Measured
from distillery.results.record import RunRecord
from distillery.runs.budget import Budget, OverBudget
from distillery.runs.export.export import write_artefact
from distillery.runs.export.exportable import Exportable, exportable, untrained
from distillery.runs.export.formats.artefact import Artefact
from distillery.runs.export.formats.registry import installed
from distillery.runs.export.proof import Compared, FreshProcess, measured
from distillery.runs.job import Job
from distillery.tasks.evaluate import evaluate

SETTING = "target.format"


def refuse_missing_format(job: Job) -> None:
    """Refuse a budget for a format whose packages are missing. Raises UserError."""
    if budget := job.budget:
        installed(budget.format, SETTING)


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
            with TemporaryDirectory(prefix="distillery-") as scratch:
                model = untrained(parts, Path(scratch)) if parts else exportable(job.folder, Path(scratch))
                job.measured[budget.format] = asdict(measure(budget.format, model))
        record.target[budget.format] = {"measured": job.measured[budget.format]}
    taken = Measured(**record.target[budget.format]["measured"])
    if budget.excess(taken) > 1:
        raise OverBudget(budget, taken, record)
    if parts and telling():
        say(f"Within the budget: {budget.compared(taken)}")


def measure(name: str, model: Exportable) -> Measured:
    """Size and latency of a student, trained or not.

    Raises:
        UserError: the format cannot hold it.
    """
    with _loaded(name, model) as (artefact, size, process):
        return measured(name, artefact, size, model, process)


def validated(budget: Budget, record: RunRecord, folder: Path) -> float | None:
    """What the trained student of a finished run scores on the validation split as it is exported.

    It is noted in the record, and computed once. The figure is the one that `task.monitor` names; of vectors it is that
    of the student itself, as what they are compared with is not kept. None: there is no validation split.
    """
    entry = record.target[budget.format]
    if "validation" not in entry:
        entry["validation"] = record.val_monitored
        if record.val_monitored is not None and record.data["prediction"] != "vector":
            with TemporaryDirectory(prefix="distillery-") as scratch:
                model = exportable(folder, Path(scratch), "val")
                with _loaded(budget.format, model) as (_, _, process):
                    loader = model.data.val_dataloader()
                    found = evaluate(Compared(model, process), loader, model.task, model.task.outputs(model.data))
            entry["validation"] = {"score": found.score, "loss": found.loss, **found.metrics}[record.monitored]
        record.write(folder)
    value: float | None = entry["validation"]
    return value


@contextmanager
def _loaded(name: str, model: Exportable) -> Iterator[tuple[Artefact, int, FreshProcess]]:
    """Within: the student in this format, its size in bytes, and a process that has loaded it."""
    chosen = installed(name, SETTING)
    if reason := chosen.refusal(model):
        raise UserError(f"{SETTING}={name}: {reason}")
    with TemporaryDirectory(dir=model.scratch) as folder:
        artefact, size = write_artefact(chosen, model, Path(folder))
        with FreshProcess(f"{SETTING}={name}", artefact, repeats=100) as process:
            yield artefact, size, process
