"""The table's numbers in readable units, for Markdown, terminal and plot alike."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.ticker import EngFormatter

from distillery.results.report.score import FRACTION, PLAIN, Score
from distillery.results.report.statistics import ALPHA
from distillery.results.report.table import (
    BEST,
    BUSY,
    CLASS_FIDELITY,
    EXACT,
    FIDELITY,
    INPUT,
    PERPLEXITY,
    TEXT_COLUMNS,
    is_baseline,
    is_teacher,
)

NONE = "–"
NO_GAIN = "no measurable gain"
NOTABLE = 1.05  # costs whose ratio is nearer to 1 are called equal


@dataclass(frozen=True)
class Column:
    """A column of the shown table, beside that of the methods.

    Attributes:
        heading: in Markdown.
        narrow: on a terminal.
        cell: the text for a row of the method table.
        is_cost: whether it says what a network costs.
        is_of_teacher: whether it relates the student to its teacher.
    """

    heading: str
    narrow: str
    cell: Callable[[Any], str]
    is_cost: bool = False
    is_of_teacher: bool = False


def percent(value: float, digits: int = 1) -> str:
    """A fraction in percent; a dash where it is not defined."""
    return NONE if math.isnan(value) else f"{100 * value:z.{digits}f}".replace("-", "−")


AGREEMENT = Column("agreement %", "agrees\n%", lambda row: percent(row.agreement), is_of_teacher=True)


def points(mean: float, ci95: float, score: Score = FRACTION) -> str:
    """A difference of scores with the half-width of its interval, of fractions in percentage points."""
    if math.isnan(mean):
        return NONE
    mean, ci95 = score.factor * mean, score.factor * ci95
    half = "" if math.isnan(ci95) else f" ± {ci95:.{score.digits}f}"
    return f"{mean:+.{score.digits}f}".replace("-", "−") + half


def in_unit(value: float, score: Score) -> str:
    """A score as it is shown, of fractions in percent; a dash where it is not defined."""
    return NONE if math.isnan(value) else f"{score.factor * value:z.{score.digits}f}".replace("-", "−")


def with_spread(mean: float, std: float, score: Score) -> str:
    """A mean of scores as it is shown, with their deviation where there is one."""
    return in_unit(mean, score) + ("" if math.isnan(std) else f" ± {in_unit(std, score)}")


def probability(p: float) -> str:
    """A p-value with three digits after the point."""
    return NONE if math.isnan(p) else "< 0.001" if p < 0.0005 else f"{p:.3f}"


def times(ratio: float, more: str, less: str) -> str:
    """How many times more or less something is, as `4.1× faster`; empty where it is about equal or not known."""
    if math.isnan(ratio) or 1 / NOTABLE < ratio < NOTABLE:
        return ""
    factor = max(ratio, 1 / ratio)
    return f"{factor:.{0 if factor >= 10 else 1}f}× {more if ratio > 1 else less}"


def si(value: float) -> str:
    """A count with SI prefix and three digits: 5.13k, 272k, 40.1M."""
    return NONE if pd.isna(value) else EngFormatter(sep="")(float(f"{value:.3g}"))


def is_of_texts(table: pd.DataFrame) -> bool:
    """Whether a method table has the columns of runs on texts."""
    return set(TEXT_COLUMNS) <= set(table.columns)


def has_fidelity(table: pd.DataFrame) -> bool:
    """Whether a method table has the columns of language models that were compared with their teacher."""
    return set(FIDELITY) <= set(table.columns)


def is_of_sweep(table: pd.DataFrame) -> bool:
    """Whether a method table has the columns of a sweep's jobs."""
    return _validation_column(table) is not None


def metrics_of(table: pd.DataFrame) -> list[str]:
    """The metrics in a method table beside the score."""
    ends, score = "_diff_mean", Score.of_table(table).columns["diff_mean"]
    return [str(name).removesuffix(ends) for name in table.columns if str(name).endswith(ends) and name != score]


def _validation_column(table: pd.DataFrame) -> str | None:
    return next((str(name) for name in table.columns if re.fullmatch(r"validation(_\w+)?_mean", str(name))), None)


def monitored(table: pd.DataFrame) -> str:
    """What students of a sweep are chosen by, where that is not the score; else empty."""
    return (_validation_column(table) or "").removeprefix("validation").removesuffix("_mean").removeprefix("_")


def columns(table: pd.DataFrame) -> list[Column]:
    """What is shown of a method table, in order: the columns in which some row has a figure."""
    known = _columns(table)
    filled = [any(cell != NONE for cell in column) for column in zip(*cells(table, known), strict=True)]
    return [column for column, some in zip(known, filled[1:], strict=True) if some]


def _columns(table: pd.DataFrame) -> list[Column]:
    """All columns; of texts, what the student saves stands beside what it keeps."""
    score = Score.of_table(table)
    heading = score.name if score.lower else "score %"
    scores = [
        Column("seeds", "seeds", lambda row: str(row.n_seeds)),
        Column(heading, heading, lambda row: with_spread(row.score_mean, row.score_std, score)),
        Column("Δ baseline", "Δ baseline", lambda row: points(row.diff_mean, row.diff_ci95, score)),
    ]
    if not score.lower:
        retention = Column("retention %", "retained\n%", lambda row: percent(row.retention), is_of_teacher=True)
        scores.append(retention)
    if PERPLEXITY in table:
        scores.insert(2, Column("perplexity", "perplexity", lambda row: _figure(row.perplexity, "{:.2f}")))
    if EXACT in table:
        scores.insert(2, Column("exact %", "exact\n%", partial(_figure_of, EXACT, FRACTION)))
    if (validation := _validation_column(table)) is not None:
        shown = Score(name, plain=True) if (name := monitored(table)) else score
        heading = shown.validation
        scores.insert(1, Column(heading, heading.replace(" ", "\n"), partial(_figure_of, validation, shown)))
    scores += [Column(name, name, partial(_figure_of, f"{name}_mean", PLAIN)) for name in metrics_of(table)]
    gap = Column("gap recovered %", "of gap\n%", lambda row: percent(row.gap_recovered, 0), is_of_teacher=True)
    fidelity = [gap]
    if not has_fidelity(table):
        fidelity.append(AGREEMENT)
    cost = [
        Column("FLOPs", "FLOPs", lambda row: si(row.flops), is_cost=True),
        Column("latency ms", "latency\nms", _latency, is_cost=True),
    ]
    if INPUT in table:
        cost.append(Column("input", "input", lambda row: NONE if pd.isna(row.input) else row.input, is_cost=True))
    if not is_of_texts(table):
        return [*scores, *fidelity, Column("params", "params", lambda row: si(row.params), is_cost=True), *cost]
    savings = [
        Column("speed-up", "speed-up", lambda row: _figure(row.speed_up, "{:.2f}×"), is_cost=True),
        Column(
            "non-embedding params (% of teacher)",
            "non-embedding\nparams (%)",
            lambda row: si(row.non_embedding_params) + _share(row.non_embedding_ratio),
            is_cost=True,
        ),
        Column(
            "params (% of teacher)",
            "params (%)",
            lambda row: si(row.params) + _share(row.params_ratio),
            is_cost=True,
        ),
    ]
    return [*scores, *savings, *fidelity, *cost]


def fidelity_columns(table: pd.DataFrame) -> list[Column]:
    """What is shown of the fidelity of language models, if there is any."""
    if not has_fidelity(table):
        return []
    return [
        AGREEMENT,
        Column("KL", "KL", lambda row: _figure(row.kl, "{:.4f}")),
        Column("KL, own text", "KL, own\ntext", lambda row: _figure(row.kl_own_text, "{:.4f}")),
        Column("reverse KL, own text", "rev. KL,\nown text", lambda row: _figure(row.reverse_kl_own_text, "{:.4f}")),
        Column("acceptance %", "accepts\n%", lambda row: percent(row.acceptance)),
        Column("calibration error %", "calib.\nerror %", lambda row: percent(row.calibration_error, 2)),
        Column("entropy", "entropy", lambda row: _figure(row.entropy, "{:.3f}")),
    ]


def class_fidelity_columns(table: pd.DataFrame) -> list[Column]:
    """What is shown of the fidelity and calibration of classifiers, if there is any."""
    if not set(CLASS_FIDELITY) <= set(table.columns):
        return []
    return [
        AGREEMENT,
        Column("KL", "KL", lambda row: _figure(row.kl, "{:.4f}")),
        Column("CKA", "CKA", lambda row: _figure(row.cka, "{:.3f}")),
        Column("ECE %", "ECE\n%", lambda row: percent(row.calibration_error, 2)),
        Column("adaptive ECE %", "adaptive\nECE %", lambda row: percent(row.adaptive_calibration_error, 2)),
        Column("Brier", "Brier", lambda row: _figure(row.brier, "{:.4f}")),
        Column("NLL", "NLL", lambda row: _figure(row.nll, "{:.4f}")),
    ]


def cells(table: pd.DataFrame, shown: Sequence[Column]) -> list[list[str]]:
    """The rows of the method table as text: the method, then the columns in their order."""
    rows = Score.of_table(table).generic(table).itertuples()
    return [[str(row.method), *(column.cell(row) for column in shown)] for row in rows]


def _figure_of(column: str, score: Score, row: Any) -> str:
    """Mean and deviation of a figure whose mean is in this column."""
    return with_spread(getattr(row, column), getattr(row, f"{column.removesuffix('_mean')}_std"), score)


def _figure(value: float, form: str) -> str:
    return NONE if math.isnan(value) else form.format(value)


def _latency(row: Any) -> str:
    return _figure(row.latency_ms, "{:.3g}") + (" (busy)" if getattr(row, BUSY, False) else "")


def _share(ratio: float) -> str:
    return "" if math.isnan(ratio) else f" ({percent(ratio, 0)})"


def best_method(table: pd.DataFrame) -> str | None:
    """The student that is marked as the best, which may be the baseline; None: a sweep without a validation split.

    In a table of an earlier version, which has no marks, that with the best mean score.
    """
    if BEST in table:
        return next(iter(table.loc[table[BEST], "method"]), None)
    score = Score.of_table(table)
    students = score.generic(table[~table["method"].map(is_teacher)])
    means = score.sign * students["score_mean"]
    return None if means.isna().all() else str(students.loc[means.idxmax(), "method"])


def chosen(table: pd.DataFrame) -> str:
    """A sentence on the best setting of a sweep; empty for any other table."""
    if not is_of_sweep(table):
        return ""
    if (best := best_method(table)) is None:
        return "There is no validation split, by which a setting could be chosen."
    by = f" by {name}" if (name := monitored(table)) else ""
    return f"Best on the validation split{by}: {best}."


def verdict(mean: float, ci95: float, p_holm: float = math.nan) -> str:
    """What a paired difference, positive where it is better, with its interval allows one to say.

    Args:
        p_holm: the corrected p-value; NaN: it is not known, as in tables of earlier versions.
    """
    if math.isnan(mean):
        return "no seed in common with the baseline: not compared"
    if math.isnan(ci95):
        return "one seed: no interval, so nothing is claimed"
    if abs(mean) <= ci95:
        return NO_GAIN
    if p_holm > ALPHA:
        return f"{NO_GAIN} among so many methods"
    return "better than the baseline" if mean > 0 else "worse than the baseline"


def verdicts(table: pd.DataFrame) -> dict[str, str]:
    """Verdict for each method; none where there is no baseline."""
    baselines = table["method"].map(is_baseline)
    if not baselines.any():
        return {}
    score = Score.of_table(table)
    methods = score.generic(table[~baselines & ~table["method"].map(is_teacher)])
    return {
        row.method: verdict(score.sign * row.diff_mean, row.diff_ci95, getattr(row, "p_holm", math.nan))
        for row in methods.itertuples()
    }
