"""How well each class is predicted: precision, recall and F1, against the baseline and the teacher."""

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from distillery.results.layout import CLASS_GAINS, CLASSES, CONFUSION
from distillery.results.report.collect import Predictions, Run, predictions_of
from distillery.results.report.formats import percent, points
from distillery.results.report.markdown import section, table_of
from distillery.results.report.statistics import mean_and_ci95
from distillery.results.report.table import BASELINE, MAIN, TEACHER

OF_CLASSES = ("class", "labels")  # what tasks predict, see `Task.prediction`
FIGURES = ("precision", "recall", "f1", "support")
COLUMNS = (
    "method", "class", "support", "precision", "recall", "f1", "diff_baseline", "diff_baseline_ci95", "diff_teacher",
)  # fmt: skip
MOST = 20  # classes in the report's table
PAIRS = 5  # of confused classes
DEFINITIONS = """
**Precision**: share of the predictions of a class that are right; **recall**: share of its samples that are found;
**F1**: their harmonic mean, 2PR ÷ (P + R). All are means over seeds. **Δ baseline**, **Δ teacher**: differences of F1
in percentage points, paired by seed; the intervals in the picture are not corrected for the number of
classes. **Support**: test samples of the class."""


class ClassFigures:
    """What is known of the classes of some students.

    Attributes:
        table: a row for each teacher or method and class, see `COLUMNS`; empty where no classes are predicted.
        confusions: by method, and of the teacher: how many samples of each class (rows) are predicted as which
            (columns), over all seeds; empty where a sample may have several labels.
    """

    def __init__(self, students: Sequence[Run]) -> None:
        self.table = pd.DataFrame(columns=COLUMNS)
        self.confusions: dict[str, NDArray[np.int64]] = {}
        self.names: list[str] = students[0].record.data.get("classes", [])
        known = [run for run in students if run.record.data.get("prediction") in OF_CLASSES and len(self.names) > 1]
        rows: list[pd.DataFrame] = []
        baselines: dict[int, NDArray[Any]] = {}  # F1 by seed
        taught: set[int] = set()  # the seeds whose teacher is in the table
        for run in sorted(known, key=lambda run: run.label != BASELINE):
            arrays, seed = predictions_of(run.folder), run.record.seed
            if "student" not in arrays:
                continue
            own = self._add(run.label, arrays["target"], arrays["student"], run)
            if run.label == BASELINE:
                baselines[seed] = own["f1"]
            elif seed in baselines:
                own["diff_baseline"] = own["f1"] - baselines[seed]
            if (name := _teacher(run, arrays)) is not None:
                theirs = self._add(TEACHER, arrays["target"], arrays[name], run, counted=seed not in taught)
                own["diff_teacher"] = own["f1"] - theirs["f1"]
                rows += [pd.DataFrame(theirs)] if seed not in taught else []
                taught.add(seed)
            rows.append(pd.DataFrame(own))
        if rows:
            by_class = pd.concat(rows).reindex(columns=COLUMNS).groupby(["method", "class"], sort=False)
            numbers = by_class.mean()
            numbers["diff_baseline_ci95"] = by_class["diff_baseline"].agg(
                lambda gains: mean_and_ci95(gains.dropna())[1]
            )
            self.table = numbers.reset_index().sort_values("method", key=lambda names: names != TEACHER, kind="stable")

    def _add(
        self, method: str, target: NDArray[Any], predicted: NDArray[Any], run: Run, counted: bool = True
    ) -> dict[str, Any]:
        labels = range(len(self.names))
        target, predicted = target.astype(np.int64), predicted.astype(np.int64)
        values = precision_recall_fscore_support(target, predicted, labels=labels, zero_division=np.nan)
        if target.ndim == 1 and counted:
            counts = confusion_matrix(target, predicted, labels=labels)
            self.confusions[method] = self.confusions.get(method, 0) + counts
        return {"method": method, "class": self.names, **dict(zip(FIGURES, values, strict=True))}


def _teacher(run: Run, arrays: Predictions) -> str | None:
    """The name of the teacher that the run's student is compared with."""
    names = [name for name in run.record.frozen_teachers if name in arrays]
    return MAIN if MAIN in names else next(iter(names), None)


def classes_section(figures: ClassFigures, method: str | None, pictures: Set[str]) -> str:
    """The classes of one method: the table, at most `MOST` classes of it, and the picture, if there is one."""
    own = figures.table[figures.table["method"] == method]
    if own.empty:
        return ""
    shown, said = own, ""
    if len(own) > MOST:
        by = "diff_baseline" if own["diff_baseline"].notna().any() else "f1"
        order = own.sort_values(by, kind="stable")
        shown = pd.concat([order.head(MOST // 2), order.dropna(subset=[by]).tail(MOST // 2)])
        what = "Δ baseline" if by == "diff_baseline" else "F1"
        said = f" Of its {len(own)} classes the {MOST} with the lowest and the highest {what} are shown."
    columns = {"precision %": "precision", "recall %": "recall", "F1 %": "f1"}
    gains = {"Δ baseline": "diff_baseline", "Δ teacher": "diff_teacher"}
    gains = {heading: name for heading, name in gains.items() if own[name].notna().any()}
    header = ["class", "support", *columns, *gains]
    lines = [
        [
            str(row["class"]).replace("|", "\\|"),
            f"{row['support']:g}",
            *(percent(row[name]) for name in columns.values()),
            *(points(row[name], row.get(f"{name}_ci95", np.nan)) for name in gains.values()),
        ]
        for row in shown.to_dict("records")
    ]
    return section(
        "Classes",
        f"Of `{method}`, the method in bold.{said} All classes of all methods: [{CLASSES}]({CLASSES}).",
        table_of(header, lines),
        _confused(figures, str(method)),
        f"![F1 of each class against the baseline]({CLASS_GAINS})" if CLASS_GAINS in pictures else "",
        f"![Which classes are taken for which]({CONFUSION})" if CONFUSION in pictures else "",
        DEFINITIONS,
    )


def _confused(figures: ClassFigures, method: str) -> str:
    if (counts := figures.confusions.get(method)) is None:
        return ""
    shares = off_diagonal(counts)
    places = np.argsort(shares, axis=None)[::-1][:PAIRS]
    pairs: Mapping[tuple[int, int], float] = {
        (int(row), int(column)): shares[row, column]
        for row, column in zip(*np.unravel_index(places, shares.shape), strict=True)
        if shares[row, column] > 0
    }
    if not pairs:
        return "No sample is taken for another class."
    named = [f"{figures.names[a]} as {figures.names[b]} ({percent(share)} %)" for (a, b), share in pairs.items()]
    return f"Most often confused: {', '.join(named)}."


def off_diagonal(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The share of each class's samples that is taken for each other class; 0 on the diagonal."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    np.fill_diagonal(shares, 0.0)
    return shares
