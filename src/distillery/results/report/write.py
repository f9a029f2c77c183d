"""The report's files: report.md, report.csv, and a PNG of every picture."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from distillery.results.layout import CLASSES, CONFUSION, FIDELITY, REPORT, TIMELINE
from distillery.results.report.classes import ClassFigures
from distillery.results.report.collect import Run, collect
from distillery.results.report.formats import best_method
from distillery.results.report.page import Report, page
from distillery.results.report.plot import STYLE, plot
from distillery.results.report.plot_confusion import plot_confusion
from distillery.results.report.plot_fidelity import plot_fidelity
from distillery.results.report.plot_timeline import plot_timeline
from distillery.results.report.selection import select
from distillery.results.report.table import method_table


def write_report(run_folders: Sequence[Path], out: Path, title: str) -> Report:
    """Writes `report.md`, `report.csv` and `report.png` on all runs below the folders.

    And `timeline.png`, where something changes during the runs, `fidelity.png` of language models, and `classes.csv`
    and `confusion.png` where classes are predicted. Those of a former report that this one lacks are removed.

    Raises:
        UserError: what `collect` or `select` refuse.
    """
    selection = select(collect(run_folders))
    table = method_table(selection.students, [run for run, _ in selection.left_out])
    classes = ClassFigures(selection.students)
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "report.csv", index=False)
    (out / CLASSES).unlink(missing_ok=True)
    if not classes.table.empty:
        classes.table.to_csv(out / CLASSES, index=False)
    with rc_context(STYLE):
        drawn = {}
        for name, figure in _figures(table, selection.students, classes).items():
            (out / name).unlink(missing_ok=True)
            if figure is not None:
                figure.savefig(out / name)
                drawn[name] = figure
    command = shlex.join(["distill-report", f"runs=[{','.join(map(str, run_folders))}]", f"out={out}"])
    report = Report(title, command, selection, table, classes, drawn.keys())
    (out / "report.md").write_text(page(report), encoding="utf-8")
    return report


def _figures(table: pd.DataFrame, students: Sequence[Run], classes: ClassFigures) -> dict[str, Figure | None]:
    """Every picture by the name of its file; None where there is nothing to draw."""
    return {
        REPORT[-1]: plot(table, students),
        TIMELINE: plot_timeline(students),
        FIDELITY: plot_fidelity(students),
        CONFUSION: plot_confusion(classes, best_method(table)),
    }
