"""The table's numbers in readable units, for Markdown, terminal and plot alike."""

import math

import pandas as pd
from matplotlib.ticker import EngFormatter

from distillery.results.table import BASELINE, TEACHER

HEADER = (
    "method", "seeds", "score %", "Δ baseline", "retention %", "gap recovered %", "agreement %", "params",
    "FLOPs", "latency ms",
)  # fmt: skip
NONE = "–"


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


def cells(table: pd.DataFrame) -> list[list[str]]:
    """The rows of the method table as text, in the order of `HEADER`."""
    return [
        [
            row.method,
            str(row.n_seeds),
            percent(row.score_mean, 2) + _spread(row.score_std),
            points(row.diff_mean, row.diff_ci95),
            percent(row.retention),
            percent(row.gap_recovered, 0),
            percent(row.agreement),
            si(row.params),
            si(row.flops),
            NONE if math.isnan(row.latency_ms) else f"{row.latency_ms:.3g}",
        ]
        for row in table.itertuples()
    ]


def _spread(std: float) -> str:
    return "" if math.isnan(std) else f" ± {percent(std, 2)}"


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
