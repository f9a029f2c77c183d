"""The report's files: report.md, report.html, report.csv, and a PNG of every picture."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from distillery.results.layout import (
    CALIBRATION,
    CLASS_GAINS,
    CLASSES,
    CONFUSION,
    CURVES,
    FIDELITY,
    REPORT,
    ROBUSTNESS,
    TIMELINE,
    TRIALS_TABLE,
)
from distillery.results.report.cheapest import Question, answer
from distillery.results.report.chosen import trials_of
from distillery.results.report.classes import ClassFigures
from distillery.results.report.collect import Run, collect
from distillery.results.report.formats import best_method
from distillery.results.report.html import html
from distillery.results.report.layers import layer_pictures, layers_by_method
from distillery.results.report.page import Report, page
from distillery.results.report.plot import STYLE, plot
from distillery.results.report.plot_calibration import plot_calibration
from distillery.results.report.plot_classes import plot_classes
from distillery.results.report.plot_confusion import plot_confusion
from distillery.results.report.plot_curves import plot_curves
from distillery.results.report.plot_fidelity import plot_fidelity
from distillery.results.report.plot_robustness import plot_robustness
from distillery.results.report.plot_timeline import plot_timeline
from distillery.results.report.robustness import Robustness, robustness_by_method
from distillery.results.report.search import Search
from distillery.results.report.selection import select
from distillery.results.report.table import method_table


def write_report(run_folders: Sequence[Path], out: Path, title: str, question: Question | None = None) -> Report:
    """Writes `report.md`, `report.html`, `report.csv` and the pictures on all runs below the folders.

    `report.png` is always there, the others of `_figures` and `classes.csv` where there is something to show; those of
    a former report that this one lacks are removed. A `question` is answered with a section of its own.

    Raises:
        UserError: what `collect` or `select` refuse.
    """
    selection = select(collect(run_folders))
    table = method_table(selection.students, [run for run, _ in selection.left_out])
    classes = ClassFigures(selection.students)
    robustness = robustness_by_method(selection.students, [run for run, _ in selection.left_out])
    layers = layers_by_method(selection.students, best_method(table))
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "report.csv", index=False)
    (out / CLASSES).unlink(missing_ok=True)
    if not classes.table.empty:
        classes.table.to_csv(out / CLASSES, index=False)
    trials = trials_of(run_folders)
    if not trials.empty:
        trials.to_csv(out / TRIALS_TABLE, index=False)
    if search := Search.read(run_folders):
        search.write(out)
    with rc_context(STYLE):
        figures = _figures(table, selection.students, classes, robustness) | layer_pictures(layers)
        drawn = {name: figure for name, figure in figures.items() if figure is not None}
        for name in figures:
            (out / name).unlink(missing_ok=True)
        for name, figure in drawn.items():
            figure.savefig(out / name)
        command = ["distill-report", f"runs=[{','.join(map(str, run_folders))}]", f"out={out}"]
        found = None
        if question is not None:
            command += [f"{name}={value}" for name, value in asdict(question).items() if value is not None]
            found = answer(question, table, selection.students)
        measured = classes, robustness, layers, trials, search
        report = Report(title, shlex.join(command), selection, table, *measured, drawn.keys(), found)
        markdown = page(report)
        (out / "report.md").write_text(markdown, encoding="utf-8")
        (out / "report.html").write_text(html(title, markdown, drawn), encoding="utf-8")
    return report


def title_of(run_folders: Sequence[Path]) -> str:
    """The title of the report in the folder of a study or sweep; of several folders, or of any other, a general one."""
    path = run_folders[0] / REPORT[0]
    if len(run_folders) > 1 or not path.is_file():
        return "Distillation report"
    return path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def _figures(
    table: pd.DataFrame, students: Sequence[Run], classes: ClassFigures, robustness: Mapping[str, Sequence[Robustness]]
) -> dict[str, Figure | None]:
    """Every picture by the name of its file; None where there is nothing to draw."""
    return {
        REPORT[-1]: plot(table, students),
        TIMELINE: plot_timeline(students),
        FIDELITY: plot_fidelity(students),
        CURVES: plot_curves(students),
        CLASS_GAINS: plot_classes(classes, best_method(table)),
        CONFUSION: plot_confusion(classes, best_method(table)),
        CALIBRATION: plot_calibration(students),
        ROBUSTNESS: plot_robustness(robustness),
    }
