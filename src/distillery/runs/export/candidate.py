"""A student with a budget: what its export takes, before it is trained, and what it scores afterwards.

The files are not kept. `runs/over_budget.py` is what each run calls.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from distillery.core.errors import UserError
from distillery.results.exports import Measured
from distillery.results.record import RunRecord
from distillery.runs.budget import FORMAT, Budget
from distillery.runs.export.export import write_artefact
from distillery.runs.export.exportable import Exportable, exportable
from distillery.runs.export.formats.artefact import Artefact
from distillery.runs.export.formats.registry import installed
from distillery.runs.export.proof import Compared, FreshProcess, measured
from distillery.tasks.evaluate import evaluate


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
    chosen = installed(name, FORMAT)
    if reason := chosen.refusal(model):
        raise UserError(f"{FORMAT}={name}: {reason}")
    with TemporaryDirectory(dir=model.scratch) as folder:
        artefact, size = write_artefact(chosen, model, Path(folder))
        with FreshProcess(f"{FORMAT}={name}", artefact, repeats=100) as process:
            yield artefact, size, process
