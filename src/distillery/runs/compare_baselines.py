"""Students that had no teacher's network beside them are compared with one, once, for the report."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from distillery.core.errors import UserError
from distillery.core.terminal import say
from distillery.results.layout import PROBABILITIES
from distillery.results.record import NO_NETWORK, RunRecord
from distillery.results.report.collect import Run, collect, predictions_of
from distillery.results.report.table import MAIN
from distillery.runs.folder_lock import FolderLock

if TYPE_CHECKING:
    from torch import Tensor

    from distillery.teachers.frozen import Teacher


def compare_baselines(folders: Sequence[Path]) -> None:
    """Complete `RunRecord.fidelity` of the finished runs below the folders.

    Of a run without a teacher, another one on the same data lends its own, one of the same seed if there is one. A
    teacher that was read from a cache on disk is loaded. What cannot be compared, as a teacher that is not there any
    more, is told and left empty.
    """
    loaded: dict[str, Teacher] = {}  # by SHA-256
    for run, lender, name in _to_compare(collect(folders)):
        try:
            with FolderLock(run.folder):
                _compare(run, lender, name, loaded)
        except UserError as error:
            say(f"{run.folder} is not compared with the teacher of {lender.folder}: {error}")


def _to_compare(runs: Sequence[Run]) -> Iterator[tuple[Run, Run, str]]:
    """The runs to complete, and for each the run and the name of the teacher to compare it with."""
    finished = [run for run in runs if run.record.status == "finished"]
    teachers = {entry["sha256"] for run in finished for entry in run.record.frozen_teachers.values()}
    for run in finished:
        for own, entry in run.record.fidelity.items():
            if entry.get("not_compared") == NO_NETWORK:
                yield run, run, own
        if run.record.frozen_teachers or not run.record.fidelity or run.record.student_sha256 in teachers:
            continue
        lenders = [
            (other.record.seed != run.record.seed, place, other, name)
            for place, other in enumerate(finished)
            if other.record.data["fingerprint"] == run.record.data["fingerprint"] and (name := _lent(other))
        ]
        if lenders:
            *_, lender, lent = min(lenders, key=lambda each: each[:2])
            if run.record.fidelity.get(lent, {}).get("sha256") != lender.record.teachers[lent]["sha256"]:
                yield run, lender, lent


def _lent(run: Run) -> str | None:
    """The name of a teacher that is compared with the run's student, or can be once it is loaded."""
    names = [
        name
        for name in run.record.frozen_teachers
        if "kl" in (entry := run.record.fidelity.get(name, {})) or entry.get("not_compared") == NO_NETWORK
    ]
    return MAIN if MAIN in names else next(iter(names), None)


def _compare(run: Run, lender: Run, name: str, loaded: dict[str, "Teacher"]) -> None:
    from distillery.runs.class_fidelity import add_class_fidelity  # torch takes seconds: only where it is needed
    from distillery.runs.fidelity import add_fidelity
    from distillery.runs.verify_run import rebuilt, teacher_of

    sha256 = lender.record.teachers[name]["sha256"]
    if sha256 not in loaded:
        teacher = teacher_of(lender.folder, lender.record, name)
        if teacher is None:
            return
        loaded[sha256] = teacher
    _, student, data, task = rebuilt(run.folder, "test")
    teacher = loaded[sha256]
    teacher.place(student.device)
    record = RunRecord.read(run.folder)
    add_fidelity(record, student, {name: teacher}, data, task, task.outputs(data))
    add_class_fidelity(record, _predicted(run, lender, name), student, {name: teacher}, data, task)
    record.fidelity[name]["sha256"] = sha256
    record.write(run.folder)


def _predicted(run: Run, lender: Run, name: str) -> dict[str, "Tensor"]:
    """What a run's student and another run's teacher predict of the same test rows, each in the order of the samples.

    Raises:
        UserError: they are not the same rows.
    """
    import torch

    found = []
    for folder in (run.folder, lender.folder):
        arrays = predictions_of(folder, probabilities=True)
        order = np.argsort(arrays["index"], kind="stable")
        found.append({key: torch.from_numpy(values[order]) for key, values in arrays.items()})
    own, theirs = found
    if not all(torch.equal(own[key], theirs[key]) for key in ("index", "target")):
        raise UserError(f"the test samples of {lender.folder} are others.")
    return own | {key: values for key, values in theirs.items() if key in (name, name + PROBABILITIES)}
