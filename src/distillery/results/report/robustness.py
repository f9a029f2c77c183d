"""How a student stands corrupted pictures, as `distill-evaluate … corruptions=all` has found."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from distillery.results.layout import CORRUPTIONS, ROBUSTNESS
from distillery.results.report.collect import Run
from distillery.results.report.formats import percent
from distillery.results.report.markdown import section, table_of
from distillery.results.report.table import TEACHER, is_baseline

DEFINITIONS = """
Test scores after corruptions of the pictures like those of ImageNet-C (Hendrycks and Dietterich 2019), and means over
seeds. **Corrupted**: mean over the corruptions, of each over its severities; **relative**: that ÷ clean. The families
are means over their corruptions."""


class Robustness(NamedTuple):
    """The scores in a run's `corruptions.json`.

    Attributes:
        clean: on the pictures as they are.
        by_corruption: the mean over severities of each corruption, with `family` and `score`.
        by_severity: the mean over the corruptions of each family (columns) for each severity (rows).
    """

    clean: float
    by_corruption: pd.DataFrame
    by_severity: pd.DataFrame

    @property
    def families(self) -> pd.Series:
        """The mean over the corruptions of each family."""
        return self.by_corruption.groupby("family", sort=False)["score"].mean()

    @property
    def overall(self) -> dict[str, float]:
        """`clean`, the mean over all corruptions, `corrupted`, and `relative`, that ÷ clean."""
        mean = float(self.by_corruption["score"].mean())
        return {"clean": self.clean, "corrupted": mean, "relative": mean / self.clean}


def robustness_of(folder: Path, student_sha256: str | None) -> Robustness | None:
    """What is known of the student of a run; None: nothing, or of another student that was there before."""
    path = folder / CORRUPTIONS
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not content or content["student_sha256"] != student_sha256:
        return None
    scores = pd.DataFrame(content["scores"])
    by_corruption = scores.groupby("corruption", sort=False).agg(family=("family", "first"), score=("score", "mean"))
    by_severity = scores.pivot_table("score", "severity", "family", sort=False).sort_index()
    return Robustness(content["clean"]["score"], by_corruption, by_severity)


def robustness_by_method(students: Sequence[Run], others: Sequence[Run]) -> dict[str, list[Robustness]]:
    """What is known of the teacher, the baseline and the methods, for each seed.

    Args:
        others: runs that are no students here; those that trained a student's teacher are rows `teacher`.
    """
    teachers = {entry["sha256"] for run in students for entry in run.record.scored_teachers.values()}
    named = [(TEACHER, run) for run in others if run.record.student_sha256 in teachers]
    named += sorted(((run.label, run) for run in students), key=lambda each: not is_baseline(each[0]))
    found: dict[str, list[Robustness]] = {}
    for label, run in named:
        if (own := robustness_of(run.folder, run.record.student_sha256)) is not None:
            found.setdefault(label, []).append(own)
    return found


def robustness_table(methods: Mapping[str, Sequence[Robustness]]) -> pd.DataFrame:
    """A row for each method: `clean`, `corrupted`, `relative` and each family, means over seeds."""
    rows = [pd.DataFrame([{**one.overall, **one.families} for one in own]).mean() for own in methods.values()]
    return pd.DataFrame([row.to_dict() for row in rows], index=[*methods])  # of series, it would sort the columns


def robustness_section(methods: Mapping[str, Sequence[Robustness]]) -> str:
    """Table, definitions and picture; empty where nothing is known."""
    if not methods:
        return ""
    table = robustness_table(methods)
    rows = [
        [str(label), str(len(methods[str(label)])), *map(percent, row)]
        for label, row in zip(table.index, table.to_numpy(), strict=True)
    ]
    return section(
        "Robustness",
        table_of(["method", "seeds", *(f"{name} %" for name in table.columns)], rows),
        DEFINITIONS,
        f"![Score by severity, for each family of corruptions]({ROBUSTNESS})",
    )
