"""The table's numbers in readable units, for Markdown, terminal and plot alike."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.ticker import EngFormatter

from distillery.results.report.table import BASELINE, PERPLEXITY, TEACHER, TEXT_COLUMNS

NONE = "–"


@dataclass(frozen=True)
class Column:
    """A column of the shown table.

    Attributes:
        heading: in Markdown.
        narrow: on a terminal; empty: it is left out there.
        cell: the text for a row of the method table.
    """

    heading: str
    narrow: str
    cell: Callable[[Any], str]


def percent(value: float, digits: int = 1) -> str:
    """A fraction in percent; a dash where it is not defined."""
    return NONE if math.isnan(value) else f"{100 * value:z.{digits}f}".replace("-", "−")


def points(mean: float, ci95: float) -> str:
    """A difference of scores in percentage points with the half-width of its interval."""
    if math.isnan(mean):
        return NONE
    return f"{100 * mean:+.2f}".replace("-", "−") + ("" if math.isnan(ci95) else f" ± {100 * ci95:.2f}")


def si(value: float) -> str:
    """A count with SI prefix and three digits: 5.13k, 272k, 40.1M."""
    return NONE if pd.isna(value) else EngFormatter(sep="")(float(f"{value:.3g}"))


def is_of_texts(table: pd.DataFrame) -> bool:
    """Whether a method table has the columns of runs on texts."""
    return set(TEXT_COLUMNS) <= set(table.columns)


def columns(table: pd.DataFrame) -> list[Column]:
    """What is shown of a method table, in order; of texts, what the student saves stands beside what it keeps."""
    scores = [
        Column("method", "method", lambda row: row.method),
        Column("seeds", "seeds", lambda row: str(row.n_seeds)),
        Column("score %", "score %\n± std", lambda row: percent(row.score_mean, 2) + _spread(row.score_std)),
        Column("Δ baseline", "Δ baseline\n± ci95", lambda row: points(row.diff_mean, row.diff_ci95)),
        Column("retention %", "reten-\ntion %", lambda row: percent(row.retention)),
    ]
    if PERPLEXITY in table:
        scores.insert(3, Column("perplexity", "perple-\nxity", lambda row: _figure(row.perplexity, "{:.2f}")))
    fidelity = [
        Column("gap recovered %", "gap re-\ncovered %", lambda row: percent(row.gap_recovered, 0)),
        Column("agreement %", "agree-\nment %", lambda row: percent(row.agreement)),
    ]
    texts = is_of_texts(table)
    cost = [
        Column("FLOPs", "" if texts else "FLOPs", lambda row: si(row.flops)),
        Column("latency ms", "" if texts else "latency\nms", lambda row: _figure(row.latency_ms, "{:.3g}")),
    ]
    if not texts:
        return [*scores, *fidelity, Column("params", "params", lambda row: si(row.params)), *cost]
    savings = [
        Column("speed-up", "speed-\nup", lambda row: _figure(row.speed_up, "{:.2f}×")),
        Column(
            "non-embedding params (% of teacher)",
            "non-\nemb.\nparams\n(%)",
            lambda row: si(row.non_embedding_params) + _share(row.non_embedding_ratio),
        ),
        Column("params (% of teacher)", "params\n(%)", lambda row: si(row.params) + _share(row.params_ratio)),
    ]
    return [*scores, *savings, *fidelity, *cost]


def cells(table: pd.DataFrame, shown: Sequence[Column]) -> list[list[str]]:
    """The rows of the method table as text, in the order of the columns."""
    return [[column.cell(row) for column in shown] for row in table.itertuples()]


def _spread(std: float) -> str:
    return "" if math.isnan(std) else f" ± {percent(std, 2)}"


def _figure(value: float, form: str) -> str:
    return NONE if math.isnan(value) else form.format(value)


def _share(ratio: float) -> str:
    return "" if math.isnan(ratio) else f" ({percent(ratio, 0)})"


def best_method(table: pd.DataFrame) -> str:
    """The student with the highest mean score; that may be the baseline."""
    students = table[table["method"] != TEACHER]
    return str(students.loc[students["score_mean"].idxmax(), "method"])


def verdict(mean: float, ci95: float) -> str:
    """What a paired difference with its interval allows one to say."""
    if math.isnan(mean):
        return "no seed in common with the baseline: not compared"
    if math.isnan(ci95):
        return "one seed: no interval, so nothing is claimed"
    if abs(mean) <= ci95:
        return "no measurable gain"
    return "better than the baseline" if mean > 0 else "worse than the baseline"


def verdicts(table: pd.DataFrame) -> dict[str, str]:
    """Verdict for each method; none where there is no baseline."""
    if BASELINE not in set(table["method"]):
        return {}
    methods = table[~table["method"].isin([TEACHER, BASELINE])]
    return {row.method: verdict(row.diff_mean, row.diff_ci95) for row in methods.itertuples()}
