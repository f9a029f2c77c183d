"""The table of methods: one row for the teacher, the baseline and each method, over seeds."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from distillery.results.report.collect import Run
from distillery.results.report.settings import same_settings

COLUMNS = (
    "method", "n_seeds", "score_mean", "score_std", "diff_mean", "diff_ci95", "retention", "gap_recovered",
    "agreement", "params", "flops", "latency_ms",
)  # fmt: skip
# Of texts, whose embeddings are many parameters that cost no time: what a student saves of its teacher.
TEXT_COLUMNS = ("non_embedding_params", "non_embedding_ratio", "params_ratio", "speed_up")
PERPLEXITY = "perplexity"  # of language models: the column, and its figure in a record
TEACHER, BASELINE = "teacher", "baseline"
MAIN = "main"  # the teacher of this name is the one that all methods are compared with
NAN = float("nan")


def mean_and_ci95(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half-width of its 95 % t interval; NaN where there are too few values for one.

    For differences paired by seed this is the paired t interval.
    """
    n = len(values)
    half = stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n) if n > 1 else NAN
    return _mean(values), float(half)


def method_table(students: Sequence[Run]) -> pd.DataFrame:
    """One row for each teacher, baseline, and method with its settings; NaN where a figure is not defined.

    The columns are `COLUMNS`. `retention` and `gap_recovered` relate to the first teacher's row.

    Where a network has embeddings (`nn.Embedding`: runs on texts) the columns `TEXT_COLUMNS` follow: the parameters
    outside of them, student ÷ teacher of these and of all parameters, and the median over seeds of teacher ÷ student
    of the latencies that one run has measured: a machine is not equally busy at all times. A baseline's are medians of
    different runs. Language models have their `PERPLEXITY`, mean over seeds.

    Scores, agreement, retention and gap are fractions. `score_std` is the sample deviation over seeds.
    `diff_mean` ± `diff_ci95` is the difference to the baseline paired by seed, with its 95 % t interval. Of several
    baselines, a method is compared with the one of its own settings (the same learning rate, say), or with none.
    `retention` and `gap_recovered` are ratios of means; the gap is undefined unless teacher − baseline is
    above 0 with its whole interval. Latency is the median over seeds. The teacher's `n_seeds` is how many
    distinct teachers there are.

    Args:
        students: the runs that are compared, as `select` gives them.
    """
    baselines = [run for run in students if run.record.method == BASELINE]
    labels = dict.fromkeys([*(run.label for run in baselines), *(run.label for run in students)])
    teachers = _teacher_rows(students, baselines)
    teacher_mean = teachers[0]["score_mean"] if teachers else NAN

    rows = [*teachers]
    for label in labels:
        runs = [run for run in students if run.label == label]
        scores = _scores(runs)
        row = _row(label, len(runs), list(scores.values()), [run.record.cost for run in runs])
        if runs[0].record.method != BASELINE:
            baseline = _scores(same_settings(runs[0], baselines))
            row["diff_mean"], row["diff_ci95"] = mean_and_ci95(_paired(scores, baseline))
            row["gap_recovered"] = (row["score_mean"] - _mean(baseline.values())) / _gap(teachers, baseline)
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


def is_teacher(label: str) -> bool:
    """Whether a row of the table is that of a teacher: `teacher`, or `teacher b` of another one."""
    return label.partition(" ")[0] == TEACHER


def is_baseline(label: str) -> bool:
    """Whether a row of the table is a baseline: `baseline`, or `baseline lr=0.1` of several."""
    return label.partition(" ")[0] == BASELINE


def _teacher_rows(students: Sequence[Run], baselines: Sequence[Run]) -> list[dict[str, Any]]:
    """The row of the teacher that the methods are compared with, then those of the others; or none.

    The first is the teacher called `main` in most runs, over the seeds: each may have one of its own. A teacher that
    only some methods have besides is `teacher <its name>`; another `main` is `teacher of <method>`.
    """
    if not (reference := _reference(students)):
        return []
    entries: dict[str, list[tuple[int, dict[str, Any]]]] = {TEACHER: []}
    for run in students:
        for name, teacher in run.record.scored_teachers.items():
            label = f"{TEACHER} {name if name != MAIN else f'of {run.label}'}"
            if teacher["sha256"] == reference.get(run.record.seed):
                label = TEACHER
            entries.setdefault(label, []).append((run.record.seed, teacher))
    compared = any(run.agreement is not None for run in students)
    rows = []
    for label, own in entries.items():
        distinct = {teacher["sha256"]: teacher for _, teacher in own}
        row = _row(label, len(distinct), [each["score"] for each in distinct.values()], [each for _, each in own])
        row["agreement"] = 1.0 if compared and label == TEACHER else NAN
        row[PERPLEXITY] = _mean(teacher.get(PERPLEXITY) for teacher in distinct.values())
        row["by_seed"] = {seed: teacher["score"] for seed, teacher in own}
        if len({run.label for run in baselines}) == 1:
            row["diff_mean"], row["diff_ci95"] = mean_and_ci95(_gaps(row, _scores(baselines)))
        rows.append(row)
    return rows


def _reference(students: Sequence[Run]) -> dict[int, str]:
    """The SHA-256 of the teacher that most runs of each seed have, preferably of those called `main`."""
    found: dict[int, Counter[str]] = {}
    entries = [(run.record.seed, *entry) for run in students for entry in run.record.scored_teachers.items()]
    names = {name for _, name, _ in entries}
    name = MAIN if MAIN in names else next((name for _, name, _ in entries), "")
    for seed, own, teacher in entries:
        if own == name:
            found.setdefault(seed, Counter())[teacher["sha256"]] += 1
    everywhere = sum(found.values(), Counter[str]())
    return {seed: max(own, key=lambda sha256: (own[sha256], everywhere[sha256])) for seed, own in found.items()}


def _gaps(teacher: dict[str, Any], baseline: Mapping[int, float]) -> list[float]:
    """Teacher − baseline by seed; where a seed has no teacher of its own, with the mean of all."""
    return [teacher["by_seed"].get(seed, teacher["score_mean"]) - score for seed, score in baseline.items()]


def _gap(teachers: Sequence[dict[str, Any]], baseline: Mapping[int, float]) -> float:
    """Teacher − baseline, where it is above 0 with its whole interval."""
    if not teachers:
        return NAN
    mean, half = mean_and_ci95(_gaps(teachers[0], baseline))
    return teachers[0]["score_mean"] - _mean(baseline.values()) if mean > half else NAN


def _paired(scores: Mapping[int, float], baseline: Mapping[int, float]) -> list[float]:
    return [score - baseline[seed] for seed, score in scores.items() if seed in baseline]


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
