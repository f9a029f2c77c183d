"""Language models that had no teacher in training are compared with the teacher of the others, once, for the report."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distillery.core.errors import UserError
from distillery.core.terminal import say
from distillery.results.record import RunRecord
from distillery.results.report.collect import Run, collect
from distillery.results.report.table import compared_with
from distillery.runs.folder_lock import FolderLock

if TYPE_CHECKING:
    from distillery.teachers.frozen import Teacher


def compare_baselines(folders: Sequence[Path]) -> None:
    """Complete `RunRecord.fidelity` of the finished runs below the folders that have no teacher.

    Of the runs on the same data, one of the same seed lends its teacher if there is one. What cannot be compared, as a
    teacher that is not there any more, is told and left empty.
    """
    loaded: dict[str, Teacher] = {}  # by SHA-256
    for run, lender, name in _to_compare(collect(folders)):
        try:
            with FolderLock(run.folder):
                _compare(run, lender, name, loaded)
        except UserError as error:
            say(f"{run.folder} is not compared with the teacher of {lender.folder}: {error}")


def _to_compare(runs: Sequence[Run]) -> Iterator[tuple[Run, Run, str]]:
    """The runs without a teacher, and for each another run with the name of the teacher that it lends."""
    finished = [run for run in runs if run.record.status == "finished"]
    teachers = {entry["sha256"] for run in finished for entry in run.record.frozen_teachers.values()}
    for run in finished:
        if run.record.frozen_teachers or not run.record.fidelity or run.record.student_sha256 in teachers:
            continue
        lenders = [
            (other.record.seed != run.record.seed, place, other, name)
            for place, other in enumerate(finished)
            if other.record.data["fingerprint"] == run.record.data["fingerprint"]
            and (name := compared_with(other)) in other.record.frozen_teachers
        ]
        if lenders:
            *_, lender, name = min(lenders, key=lambda each: each[:2])
            if run.record.fidelity.get(name, {}).get("sha256") != lender.record.teachers[name]["sha256"]:
                yield run, lender, name


def _compare(run: Run, lender: Run, name: str, loaded: dict[str, "Teacher"]) -> None:
    from distillery.config.networks import build_teacher, run_config  # torch takes seconds: only where it is needed
    from distillery.runs.fidelity import add_fidelity
    from distillery.runs.verify_run import rebuilt

    sha256 = lender.record.teachers[name]["sha256"]
    _, student, data, task = rebuilt(run.folder, "test")
    outputs = task.outputs(data)
    if sha256 not in loaded:
        cfg = run_config(str(lender.folder), "run").teachers.get(name)
        if cfg is None:
            raise UserError(f"teachers.{name} is the teacher of a stage.")
        teacher = build_teacher(cfg, name)
        if teacher.sha256 != sha256:
            raise UserError(f"teachers.{name}.weights are others now.")
        loaded[sha256] = teacher
    teacher = loaded[sha256].to(student.device)
    record = RunRecord.read(run.folder)
    samples = record.samples
    add_fidelity(record, student, {name: teacher}, data, task, outputs)
    record.fidelity[name]["sha256"], record.samples = sha256, samples
    record.write(run.folder)
