"""The report's table for the terminal."""

from collections.abc import Mapping, Sequence

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from distillery.results.report.formats import (
    Column,
    best_method,
    cells,
    chosen,
    columns,
    fidelity_columns,
    is_of_sweep,
)
from distillery.results.report.page import training_samples
from distillery.results.report.score import Score
from distillery.results.report.search import Search, remarks, trials_table
from distillery.results.report.table import is_teacher


def terminal_table(table: pd.DataFrame, title: str) -> Group:
    """The table for a terminal of 80 columns, the best method in bold; below it what the networks cost.

    Costs are a table of their own: beside the scores, no cell would fit on one line. Nor would the settings of a sweep:
    of it, how students compare with their teacher is left to the files. Where they differ, the numbers of training
    samples follow.
    """
    scores, costs = ([column for column in columns(table) if column.is_cost is cost] for cost in (False, True))
    if is_of_sweep(table):
        scores = [column for column in scores if not column.is_of_teacher]
    named = [f"{sentence}\n"] if (sentence := chosen(table)) else []
    bold = {str(best_method(table)): "bold"} | {name: "dim" for name in table["method"] if is_teacher(name)}
    seen = [f"Training samples: {'; '.join(samples)}\n"] if (samples := training_samples(table)) else []
    fidelity = [_rows(table, shown, "Fidelity", bold)] if (shown := fidelity_columns(table)) else []
    cost = _rows(_distinct_costs(table), costs, "Cost", {})
    return Group(_rows(table, scores, title, bold), *named, *fidelity, cost, *seen)


def search_table(search: Search, score: Score, title: str) -> Group:
    """The trials of a search for the terminal, the best in bold, and what is said of them."""
    header, rows, best = trials_table(search, score)
    made = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in header:
        made.add_column(heading, justify="right")
    for place, row in enumerate(rows):
        made.add_row(*row, style="bold" if place == best else None)
    return Group(made, *remarks(search), "")


def _rows(table: pd.DataFrame, shown: Sequence[Column], title: str, styles: Mapping[str, str]) -> Table:
    made = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    made.add_column("method", overflow="fold")
    for column in shown:
        made.add_column(column.narrow, justify="right", no_wrap=True)
    for row in cells(table, shown):
        made.add_row(*row, style=styles.get(row[0]))
    return made


def _distinct_costs(table: pd.DataFrame) -> pd.DataFrame:
    """One row for all students of one size: their latencies are measurements of one network."""
    students = ~table["method"].map(is_teacher)
    if table.loc[students, ["params", "flops"]].drop_duplicates().shape[0] > 1:
        return table
    one = table[students].iloc[:1].assign(method="students", latency_ms=table.loc[students, "latency_ms"].median())
    if "speed_up" in table:
        one = one.assign(speed_up=table.loc[students, "speed_up"].median())
    return pd.concat([table[~students], one])
