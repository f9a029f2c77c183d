"""Which of the collected runs are compared, and why the others are not."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from distillery.core.errors import UserError
from distillery.results.report.collect import Run
from distillery.results.report.settings import labelled


@dataclass
class Selection:
    """The runs of a report, sorted by the part that they play in it.

    Attributes:
        students: the runs that are compared: finished, one for each method, setting and seed, in order of appearance.
        teachers: runs whose student is the teacher of other runs here.
        superseded: finished runs of which there is a later one with the same method, settings and seed.
        unfinished: failed runs, running ones, and runs without a test score.
    """

    students: list[Run] = field(default_factory=list)
    teachers: list[Run] = field(default_factory=list)
    superseded: list[Run] = field(default_factory=list)
    unfinished: list[Run] = field(default_factory=list)


def select(runs: Sequence[Run]) -> Selection:
    """Sort the runs of one experiment, and label each with the row of the table that it belongs to.

    Raises:
        UserError: no finished run, runs on different data or with different scores, or students of different size in
            one row.
    """
    selection = Selection()
    hashes = {teacher.get("sha256") for run in runs for teacher in run.record.frozen_teachers.values()}
    # a run that failed has no teachers on record yet, but what it was started with
    hashes |= {sha256 for run in runs for source, sha256 in run.record.sources.items() if ":teachers." in source}
    candidates: list[Run] = []
    for run in runs:
        if run.record.status != "finished" or run.score is None:
            selection.unfinished.append(run)
        elif run.record.student_sha256 is not None and run.record.student_sha256 in hashes:
            selection.teachers.append(run)
        else:
            candidates.append(run)
    latest: dict[tuple[str, int], Run] = {}
    for run in labelled(candidates):
        other = latest.setdefault((run.label, run.record.seed), run)
        if other is not run:
            old, new = sorted([other, run], key=lambda each: each.record.started)
            latest[run.label, run.record.seed] = new
            selection.superseded.append(old)
    selection.students = list(latest.values())
    _check_comparable(selection.students)
    return selection


def _check_comparable(students: Sequence[Run]) -> None:
    if not students:
        raise UserError("None of the runs is finished: there is nothing to report yet.")
    by_label: dict[str, Run] = {}
    for run in students:
        first = by_label.setdefault(run.label, run)
        if first.record.cost.get("params") != run.record.cost.get("params"):
            raise UserError(
                f"The runs of '{run.label}' have students of different size: {first.folder}, "
                f"{run.folder}. A report is about one student: make one for each."
            )
    data = [run.record.data for run in students]
    for what, values in {
        "are on different data": [f"{each['name']} ({each['test']} test samples)" for each in data],
        "have different scores": [each["score_name"] for each in data],
    }.items():
        if len(found := dict(zip(values, students, strict=True))) > 1:
            named = ", ".join(f"{value} in {run.folder}" for value, run in found.items())
            raise UserError(f"The runs {what}: {named}. They cannot be compared: make a report for each.")
