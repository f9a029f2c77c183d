"""Which of the collected runs are compared, and why the others are not."""

from collections.abc import Sequence
from dataclasses import dataclass

from distillery.core.errors import UserError
from distillery.results.report.collect import Run
from distillery.results.report.settings import labelled


@dataclass
class Selection:
    """The runs of a report.

    Attributes:
        students: the runs that are compared: finished, one for each method, setting and seed, in order of appearance.
        left_out: the others, and why they are not compared.
    """

    students: list[Run]
    left_out: list[tuple[Run, str]]


def select(runs: Sequence[Run]) -> Selection:
    """Sort the runs of one experiment, and label each with the row of the table that it belongs to.

    Raises:
        UserError: no finished run, runs on different data or with different scores, or students of different size in
            one row.
    """
    hashes = {teacher.get("sha256") for run in runs for teacher in run.record.frozen_teachers.values()}
    # a run that failed has no teachers on record yet, but what it was started with
    hashes |= {sha256 for run in runs for source, sha256 in run.record.sources.items() if ":teachers." in source}
    hashes.discard(None)
    candidates: list[Run] = []
    left_out: list[tuple[Run, str]] = []
    for run in runs:
        if run.record.status != "finished":
            reason = (run.record.error or "").strip().splitlines()[-1:]
            left_out.append((run, ": ".join([run.record.status, *reason]).rstrip(".")))
        elif run.score is None:
            left_out.append((run, "finished without a test score"))
        elif run.record.student_sha256 in hashes:
            left_out.append((run, "its student is a teacher of the other runs"))
        else:
            candidates.append(run)
    found = labelled(candidates)
    latest = {(run.label, run.record.seed): run for run in sorted(found, key=lambda run: run.record.started)}
    students: list[Run] = []
    for run in found:
        if (later := latest[run.label, run.record.seed]) is run:
            students.append(run)
        else:
            left_out.append((run, f"there is a later run, `{later.folder}`"))
    _check_comparable(students)
    return Selection(students, left_out)


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
    tests = {run.tested_on for run in students}  # training data may differ: who wrote the labels, say
    same_test = len(tests) == 1 and None not in tests
    for what, values in {
        "are on different data": [
            "" if same_test else f"{each['name']} ({each['test']} test samples)" for each in data
        ],
        "have different scores": [each["score_name"] for each in data],
    }.items():
        if len(found := dict(zip(values, students, strict=True))) > 1:
            named = ", ".join(f"{value} in {run.folder}" for value, run in found.items())
            raise UserError(f"The runs {what}: {named}. They cannot be compared: make a report for each.")
