"""The first sentence of a report: what the best student keeps of its teacher, and what it saves."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from distillery.results.report.collect import Run
from distillery.results.report.comparison import of_seeds, scores
from distillery.results.report.exported import Exported, exported, fastest
from distillery.results.report.formats import NO_GAIN, best_method, in_unit, percent, si, times, verdicts
from distillery.results.report.latency import Key, Measured, latencies, network_of
from distillery.results.report.score import Score
from distillery.results.report.statistics import mean_and_ci95, ratio_and_ci95
from distillery.results.report.table import TEACHER, is_baseline, reference_teachers

Row = Mapping[str, Any]
ALONE = "the same network trained alone"


def headline(table: pd.DataFrame, students: Sequence[Run]) -> str:
    """The sentence on the method in bold; empty where nothing is known of it that could be claimed.

    If it was exported, score, latency and size are those of the fastest file. A clause is left out where its figures
    were not measured or cannot be trusted: a speed-up where a latency was measured on a busy machine alone or on
    another one than the teacher's, a gap that is inside its interval.
    """
    if (name := best_method(table)) is None:
        return ""
    rows = Score.of_table(table).generic(table).set_index("method").to_dict("index")
    runs = [run for run in students if run.label == name]
    shipped = fastest(exported(runs), runs[0].record.environment.get("cpu"))
    clauses: list[str] = []
    if TEACHER in rows:
        measured = latencies(run.record for run in students)
        teacher = _Teacher.of(rows[TEACHER], students, measured)
        saved = _saved(rows[name], teacher, runs, measured) if shipped is None else _saved_by_file(teacher, shipped)
        clauses = [*_kept(teacher, runs, shipped), *saved]
    *most, last = clauses or [""]
    sentence = f"{', '.join(most)} and {last}" if most else last
    gained = _gained(rows[name], verdicts(table).get(name, ""), Score.of_table(table))
    if gained and shipped and sentence:
        gained = f"{gained} (before the export)"
    subject = f"student (`{name}`, as {shipped.format})" if shipped else f"student (`{name}`)"
    if is_baseline(name) and len({run.label for run in students}) > 1:
        subject = f"No method is better than the {subject.replace('student', 'student trained alone', 1)}, which"
    else:
        subject = f"The {subject}"
    said = "; it ".join(each for each in (sentence, gained) if each)
    return f"{subject} {said}." if said else ""


@dataclass(frozen=True)
class _Teacher:
    """The teacher that methods are compared with.

    Attributes:
        row: of the table.
        by_seed: its scores.
        latency: milliseconds of a forward by the CPU, in PyTorch; only those of an idle machine.
    """

    row: Row
    by_seed: dict[int, float]
    latency: dict[str | None, float]

    @classmethod
    def of(cls, row: Row, students: Sequence[Run], measured: Mapping[Key, Measured]) -> "_Teacher":
        hashes = reference_teachers(students)
        by_seed: dict[int, float] = {}
        latency: dict[str | None, float] = {}
        for record in (run.record for run in students):
            for entry in record.scored_teachers.values():
                if entry["sha256"] == hashes[record.seed]:
                    by_seed[record.seed] = entry["score"]
                    if (found := measured.get(network_of(record, entry))) and not found.busy:
                        latency[record.environment.get("cpu")] = found.ms
        return cls(row, by_seed, latency)


def _kept(teacher: _Teacher, runs: Sequence[Run], shipped: Exported | None) -> Iterator[str]:
    """The share of the teacher's score, or of scores of which lower is better both of them."""
    score, name = Score.of_record(runs[0].record.data), runs[0].record.data["score_name"]
    ours, mean = scores(runs) if shipped is None else shipped.scores, teacher.row["score_mean"]
    if score.lower:
        interval = _interval(ours.mean(), mean_and_ci95(ours)[1], len(ours), partial(in_unit, score=score))
        yield f"reaches {in_unit(ours.mean(), score)} {name} ({interval}; the teacher has {in_unit(mean, score)})"
    elif mean > 0:
        half = ratio_and_ci95(ours, of_seeds({"by_seed": teacher.by_seed, "score_mean": mean}, ours))[1]
        interval = _interval(ours.mean() / mean, half, len(ours), percent)
        verb = "reaches" if ours.mean() > mean else "keeps"
        yield f"{verb} {percent(ours.mean() / mean)} % ({interval}) of the teacher's {name}"


def _interval(value: float, half: float, seeds: int, shown: Callable[[float], str]) -> str:
    """The half-width of an interval, or why there is none: one that reaches 0 says nothing of the figure."""
    if math.isnan(half):
        return "one seed"
    return f"± {shown(half)}" if half < abs(value) else f"{seeds} seeds, too few for an interval"


def _saved(row: Row, teacher: _Teacher, runs: Sequence[Run], measured: Mapping[Key, Measured]) -> Iterator[str]:
    """Time and size of the trained network, where they differ from the teacher's."""
    environment = runs[0].record.environment
    on = environment.get("gpu") if environment.get("scored_on") == "cuda" else "one thread"
    if said := times(_speed_up(teacher, runs, measured), "faster", "slower"):
        yield f"runs {said} (PyTorch, batch 1, {on})"
    if said := times(_params(teacher.row) / _params(row), "fewer parameters", "more parameters"):
        yield f"has {said}"


def _saved_by_file(teacher: _Teacher, shipped: Exported) -> Iterator[str]:
    """Time and size of the exported file, where they differ from the teacher's in PyTorch and in 32-bit floats."""
    theirs = 4 * _params(teacher.row)
    if said := times(teacher.latency.get(shipped.cpu, math.nan) / shipped.latency_ms, "faster", "slower"):
        yield f"runs {said} ({shipped.runtime}, the teacher in PyTorch; batch 1, one thread)"
    if said := times(theirs / shipped.bytes, "smaller", "larger"):
        yield f"is {said} ({si(shipped.bytes)}B; the teacher in float32 {si(theirs)}B)"


def _params(row: Row) -> float:
    return math.nan if pd.isna(row["params"]) else float(row["params"])


def _speed_up(teacher: _Teacher, runs: Sequence[Run], measured: Mapping[Key, Measured]) -> float:
    """Latency of the teacher ÷ that of the student, the median over the runs' machines, where both were idle."""
    found = []
    for record in (run.record for run in runs):
        own, theirs = measured.get(network_of(record, record.cost)), teacher.latency.get(record.environment.get("cpu"))
        if own and theirs and not own.busy:
            found.append(theirs / own.ms)
    return float(pd.Series(found, dtype="float64").median())


def _gained(row: Row, finding: str, score: Score) -> str:
    """What the teacher has brought: its share of the gap, if gap and gain are measurable."""
    if finding.startswith(NO_GAIN):
        return f"is not measurably better than {ALONE}"
    if finding.startswith("worse"):
        return f"is worse than {ALONE}"
    if finding.startswith("better") and not math.isnan(row["gap_recovered"]):
        share = f"{percent(row['gap_recovered'], 0)} %"
        if row["gap_ci95"] < row["gap_recovered"]:
            share += f" (± {percent(row['gap_ci95'], 0)})"
        return f"recovers {share} of the gap between {ALONE} and the teacher"
    if finding.startswith("better"):
        return f"is better than {ALONE} by {in_unit(abs(row['diff_mean']), score)} {score.unit}"
    return ""
