"""The report of run folders, written and shown: the same for a study, a sweep and `distill-report`."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import RenderableType

from distillery.core.terminal import plain_console, say
from distillery.results.layout import report_files
from distillery.results.report.cheapest import Question
from distillery.results.report.headline import headline
from distillery.results.report.score import Score
from distillery.results.report.terminal import search_table, terminal_table
from distillery.results.report.write import write_report
from distillery.runs.compare_baselines import compare_baselines


def show_report(
    folders: Sequence[Path],
    out: Path,
    title: str,
    found: RenderableType | None = None,
    question: Question | None = None,
) -> pd.DataFrame:
    """Write the report on all runs below the folders into `out`, print its table, its first sentence and its paths.

    Of a search, its trials are printed; the table only if there are other runs in it.

    Args:
        found: what else is printed below the table.
        question: which student is the cheapest that keeps so much; its answer is printed, too.

    Returns: the table.

    Raises:
        UserError: see `write_report`.
    """
    compare_baselines(folders)
    report = write_report(folders, out, title, question)
    if search := report.search:
        score = Score.of_monitored(report.selection.students[0].record)
        plain_console().print(search_table(search, score, title))
    if search is None or len(report.selection.students) > search.runs:
        plain_console().print(terminal_table(report.table, title))
    if found is not None:
        plain_console().print(found)
    if sentence := headline(report.table, report.selection.students):
        say(f"{sentence}\n")
    if report.answer is not None:
        say(f"{report.answer.sentence}\n")
    say("Report: " + "  ".join(str(out / name) for name in report_files(out)))
    return report.table
