"""The first sentence of a report: what the best student keeps of its teacher, and what it saves."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from distillery.results.record import RunRecord
from distillery.results.report.collect import Run
from distillery.results.report.formats import NO_GAIN, best_method, in_unit, percent, times, verdicts
from distillery.results.report.latency import latencies, network_of
from distillery.results.report.score import Score
from distillery.results.report.statistics import mean_and_ci95
from distillery.results.report.table import TEACHER, is_baseline, reference_teachers

Row = Mapping[str, Any]


def headline(table: pd.DataFrame, students: Sequence[Run]) -> str:
    """The sentence on the method in bold; empty where nothing is known of it that could be claimed.

    A clause is left out where its figures were not measured or cannot be trusted: a speed-up where a latency was
    measured on a busy machine alone or on another one than the teacher's, a gap that is inside its interval.
    """
    if (name := best_method(table)) is None:
        return ""
    rows = Score.of_table(table).generic(table).set_index("method").to_dict("index")
    runs, teacher = [run for run in students if run.label == name], rows.get(TEACHER)
    clauses = [*_kept(rows[name], teacher, runs), *_saved(rows[name], teacher, runs, students)] if teacher else []
    *most, last = clauses or [""]
    sentence = f"{', '.join(most)} and {last}" if most else last
    gained = _gained(rows[name], verdicts(table).get(name, ""), Score.of_table(table))
    if is_baseline(name) and len({run.label for run in students}) > 1:
        subject = f"No method is better than the student trained alone (`{name}`), which"
    else:
        subject = f"The student (`{name}`)"
    said = "; it ".join(each for each in (sentence, gained) if each)
    return f"{subject} {said}." if said else ""


def _kept(row: Row, teacher: Row, runs: Sequence[Run]) -> Iterator[str]:
    """The share of the teacher's score, or of scores of which lower is better both of them."""
    score, name = Score.of_record(runs[0].record.data), runs[0].record.data["score_name"]
    if score.lower:
        _, half = mean_and_ci95([run.score for run in runs if run.score is not None])
        interval = "one seed" if math.isnan(half) else f"± {in_unit(half, score)}"
        ours, theirs = (in_unit(each["score_mean"], score) for each in (row, teacher))
        yield f"reaches {ours} {name} ({interval}; the teacher has {theirs})"
    elif teacher["score_mean"] > 0:
        half = row["retention_ci95"]
        interval = "one seed" if math.isnan(half) else f"± {percent(half)}"
        verb = "reaches" if row["retention"] > 1 else "keeps"
        yield f"{verb} {percent(row['retention'])} % ({interval}) of the teacher's {name}"


def _saved(row: Row, teacher: Row, runs: Sequence[Run], students: Sequence[Run]) -> Iterator[str]:
    """Time and size, where they differ from the teacher's."""
    if said := times(_speed_up(runs, students), "faster", "slower"):
        yield f"runs {said} ({_circumstances(runs[0].record)})"
    theirs, ours = (math.nan if pd.isna(each["params"]) else float(each["params"]) for each in (teacher, row))
    if said := times(theirs / ours, "fewer parameters", "more parameters"):
        yield f"has {said}"


def _gained(row: Row, finding: str, score: Score) -> str:
    """What the teacher has brought: its share of the gap, if gap and gain are measurable."""
    alone = "the same network trained alone"
    if finding.startswith(NO_GAIN):
        return f"is not measurably better than {alone}"
    if finding.startswith("worse"):
        return f"is worse than {alone}"
    if finding.startswith("better") and not math.isnan(row["gap_recovered"]):
        share = f"{percent(row['gap_recovered'], 0)} % (± {percent(row['gap_ci95'], 0)})"
        return f"recovers {share} of the gap between {alone} and the teacher"
    if finding.startswith("better"):
        return f"is better than {alone} by {in_unit(abs(row['diff_mean']), score)} {score.unit}"
    return ""


def _speed_up(runs: Sequence[Run], students: Sequence[Run]) -> float:
    """Latency of the teacher ÷ that of the student, the median over the machines on which both could be measured."""
    measured = latencies(run.record for run in students)
    reference = {*reference_teachers(students).values()}
    teachers = [
        entry for run in students for entry in run.record.scored_teachers.values() if entry["sha256"] in reference
    ]
    found = []
    for record in (run.record for run in runs):
        own = measured.get(network_of(record, record.cost))
        theirs = [each for entry in teachers if (each := measured.get(network_of(record, entry)))]
        if own and theirs and not own.busy and not theirs[0].busy:
            found.append(theirs[0].ms / own.ms)
    return float(pd.Series(found, dtype="float64").median())


def _circumstances(record: RunRecord) -> str:
    on = record.environment.get("gpu") if record.environment.get("scored_on") == "cuda" else "one thread"
    return f"PyTorch, batch 1, {on}"
