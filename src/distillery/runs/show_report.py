"""The report of run folders, written and shown: the same for a study, a sweep and `distill-report`."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import RenderableType

from distillery.core.terminal import plain_console, say
from distillery.results.layout import report_files
from distillery.results.report.cheapest import Question
from distillery.results.report.headline import headline
from distillery.results.report.terminal import terminal_table
from distillery.results.report.write import write_report
from distillery.runs.compare_baselines import compare_baselines


def show_report(
    folders: Sequence[Path],
    out: Path,
    title: str,
    shown: RenderableType | None = None,
    question: Question | None = None,
) -> pd.DataFrame:
    """Write the report on all runs below the folders into `out`, print its table, its first sentence and its paths.

    Args:
        shown: what is printed in place of the table.
        question: which student is the cheapest that keeps so much; its answer is printed, too.

    Returns: the table.

    Raises:
        UserError: see `write_report`.
    """
    compare_baselines(folders)
    report = write_report(folders, out, title, question)
    plain_console().print(shown or terminal_table(report.table, title))
    if sentence := headline(report.table, report.selection.students):
        say(f"{sentence}\n")
    if report.answer is not None:
        say(f"{report.answer.sentence}\n")
    say("Report: " + "  ".join(str(out / name) for name in report_files(out)))
    return report.table
