"""The table of methods: one row for the teacher, the baseline and each method, over seeds."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from distillery.results.report.collect import Run

COLUMNS = (
    "method", "n_seeds", "score_mean", "score_std", "diff_mean", "diff_ci95", "retention", "gap_recovered",
    "agreement", "params", "flops", "latency_ms",
)  # fmt: skip
# Of texts, whose embeddings are many parameters that cost no time: what a student saves of its teacher.
TEXT_COLUMNS = ("non_embedding_params", "non_embedding_ratio", "params_ratio", "speed_up")
PERPLEXITY = "perplexity"  # of language models: the column, and its figure in a record
TEACHER, BASELINE = "teacher", "baseline"
NAN = float("nan")


def mean_and_ci95(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half-width of its 95 % t interval; NaN where there are too few values for one.

    For differences paired by seed this is the paired t interval.
    """
    n = len(values)
    half = stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n) if n > 1 else NAN
    return _mean(values), float(half)


def method_table(students: Sequence[Run]) -> pd.DataFrame:
    """One row a method, with the columns `COLUMNS`; NaN where a figure is not defined.

    Where a network has embeddings (`nn.Embedding`: runs on texts) the columns `TEXT_COLUMNS` follow: the parameters
    outside of them, student ÷ teacher of these and of all parameters, and the median over seeds of teacher ÷ student
    of the latencies that one run has measured: a machine is not equally busy at all times. A baseline's are medians of
    different runs. Language models have their `PERPLEXITY`, mean over seeds.

    Scores, agreement, retention and gap are fractions. `score_std` is the sample deviation over seeds.
    `diff_mean` ± `diff_ci95` is the difference to the baseline paired by seed, with its 95 % t interval.
    `retention` and `gap_recovered` are ratios of means; the gap is undefined unless teacher − baseline is
    above 0 with its whole interval. Latency is the median over seeds. The teacher's `n_seeds` is how many
    distinct teachers there are.

    Args:
        students: the runs that are compared, as `select` gives them.
    """
    methods: dict[str, list[Run]] = {BASELINE: []}
    for run in students:
        methods.setdefault(run.record.method, []).append(run)
    baseline = _scores(methods[BASELINE])
    rows = _teacher_rows(students, baseline)
    base_mean = _mean(baseline.values())
    teacher_mean = rows[0]["score_mean"] if rows else NAN
    gap_is_real = bool(rows) and rows[0]["diff_mean"] > rows[0]["diff_ci95"]
    gap = teacher_mean - base_mean if gap_is_real else NAN

    for method, runs in methods.items():
        if not runs:
            continue
        scores = _scores(runs)
        row = _row(method, len(runs), list(scores.values()), [run.record.cost for run in runs])
        if method != BASELINE:
            pairs = [scores[seed] - baseline[seed] for seed in scores if seed in baseline]
            row["diff_mean"], row["diff_ci95"] = mean_and_ci95(pairs)
            row["gap_recovered"] = (row["score_mean"] - base_mean) / gap
        row["agreement"] = _mean(run.agreement for run in runs)
        row["speed_up"] = _speed_up(runs)
        row[PERPLEXITY] = _mean(run.record.metrics["last"].get(PERPLEXITY) for run in runs)
        rows.append(row)
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    frame["retention"] = frame["score_mean"] / teacher_mean
    frame = frame.astype({"n_seeds": "int64", "params": "Int64", "flops": "Int64"})
    if any(row["embedding_params"] for row in rows):
        frame = _with_text_columns(frame, rows)
    perplexities = pd.Series([row[PERPLEXITY] for row in rows])
    return frame if perplexities.isna().all() else frame.assign(**{PERPLEXITY: perplexities})


def _with_text_columns(frame: pd.DataFrame, rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """`TEXT_COLUMNS` beside the others; ratios are to the teacher, which has the first row if there is one."""
    embeddings = pd.array([row["embedding_params"] for row in rows], dtype="Int64")
    frame["non_embedding_params"] = frame["params"] - embeddings
    numbers = frame[["non_embedding_params", "params", "latency_ms"]].astype("float64")
    teacher = numbers.iloc[0] if frame["method"].iloc[0] == TEACHER else numbers.iloc[0] * NAN
    frame["non_embedding_ratio"] = numbers["non_embedding_params"] / teacher["non_embedding_params"]
    frame["params_ratio"] = numbers["params"] / teacher["params"]
    paired = pd.Series([row.get("speed_up", NAN) for row in rows])
    frame["speed_up"] = paired.fillna(teacher["latency_ms"] / numbers["latency_ms"])
    return frame


def _speed_up(runs: Sequence[Run]) -> float:
    found = []
    for run in runs:
        own, theirs = run.record.cost.get("latency_ms"), _known([*run.record.frozen_teachers.values()], "latency_ms")
        if own and theirs:
            found.append(np.mean(theirs) / own)
    return float(np.median(found)) if found else NAN


def _teacher_rows(students: Sequence[Run], baseline: dict[int, float]) -> list[dict[str, Any]]:
    """The row of all distinct teachers, or none; its difference to the baseline is the gap.

    The gap is paired by seed: a baseline's teacher is that of the runs of its seed; all where there is none.
    """
    entries = [(run.record.seed, teacher) for run in students for teacher in run.record.frozen_teachers.values()]
    if not entries:
        return []
    distinct = {teacher["sha256"]: teacher for _, teacher in entries}
    scores = [teacher["score"] for teacher in distinct.values()]
    row = _row(TEACHER, len(distinct), scores, [teacher for _, teacher in entries])
    gaps = []
    for seed, score in baseline.items():
        own = {teacher["sha256"]: teacher["score"] for other, teacher in entries if other == seed}
        gaps.append(_mean(own.values() or scores) - score)
    row["diff_mean"], row["diff_ci95"] = mean_and_ci95(gaps)
    compared = any(run.agreement is not None for run in students)
    perplexity = _mean(teacher.get(PERPLEXITY) for teacher in distinct.values())
    return [{**row, "agreement": 1.0 if compared else NAN, PERPLEXITY: perplexity}]


def _row(method: str, n: int, scores: list[float | None], costs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    known = [score for score in scores if score is not None]
    latencies = _known(costs, "latency_ms")
    return {
        "method": method,
        "n_seeds": n,
        "score_mean": _mean(known),
        "score_std": float(np.std(known, ddof=1)) if len(known) > 1 else NAN,
        "params": costs[0].get("params"),
        "embedding_params": next(iter(_known(costs, "embedding_params")), None),
        "flops": costs[0].get("flops"),
        "latency_ms": float(np.median(latencies)) if latencies else NAN,
    }


def _known(costs: Sequence[dict[str, Any]], name: str) -> list[Any]:
    return [cost[name] for cost in costs if cost.get(name) is not None]


def _scores(runs: Sequence[Run]) -> dict[int, float]:
    return {run.record.seed: run.score for run in runs if run.score is not None}


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else NAN
