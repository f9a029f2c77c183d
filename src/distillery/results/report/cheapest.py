"""A question to a report: which student is the cheapest of those that keep so much of their teacher's score?"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NamedTuple

import pandas as pd

from distillery.core.errors import UserError
from distillery.results.layout import STUDENT
from distillery.results.report.collect import Run
from distillery.results.report.comparison import by_label
from distillery.results.report.exported import exported
from distillery.results.report.formats import NONE, percent, si
from distillery.results.report.markdown import table_of
from distillery.results.report.pareto import frontier
from distillery.results.report.score import Score
from distillery.results.report.statistics import mean_and_ci95
from distillery.results.report.table import BUSY, TEACHER

COSTS = {"flops": "FLOPs", "params": "parameters", "bytes": "bytes", "latency_ms": "ms", "money": "a million samples"}
TIMED = ("latency_ms", "money")
PER_MILLION = 1e6 / 1000 / 3600  # hours that a million forwards take, for each millisecond of one


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        keep: the share of the teacher's score; of a score of which lower is better, teacher ÷ student.
        cost: one of `COSTS`.
        price: of an hour of the machine, for `money`, in any currency.

    Raises:
        UserError: a share that is none, an unknown cost, or money without a price.
    """

    keep: float
    cost: str = "flops"
    price: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 2:
            raise UserError(f"keep={self.keep:g} is no share of the teacher's score: 90 % are keep=0.9")
        if self.cost not in COSTS:
            near = get_close_matches(self.cost, COSTS, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(f"cost={self.cost} is not measured. Costs: {', '.join(COSTS)}.{hint}")
        if (self.cost == "money") != (self.price is not None):
            raise UserError("cost=money needs the price of an hour of the machine, and no other cost does: price=0.40")

    @property
    def per_ms(self) -> float:
        """What a millisecond of each forward costs."""
        return 1.0 if self.price is None else self.price * PER_MILLION


class Answer(NamedTuple):
    """A sentence, and as Markdown a table of the students that none beats in both cost and score."""

    sentence: str
    table: str = ""


@dataclass(frozen=True)
class Candidate:
    """A student, or a file it was exported to: what it costs, and the share of the teacher's score that it keeps."""

    name: str
    cost: float
    share: float
    ci95: float


def answer(question: Question, table: pd.DataFrame, students: Sequence[Run]) -> Answer:
    """The cheapest student that keeps so much, or how much is kept at most."""
    rows = Score.of_table(table).generic(table).set_index("method")
    if TEACHER not in rows.index:
        return Answer("There is no teacher with a score, of which a student could keep a share.")
    cheapest_first = sorted(
        (each for each in _candidates(question, table, students) if not math.isnan(each.cost + each.share)),
        key=lambda each: (each.cost, -each.share),
    )
    if not cheapest_first:
        where = " on an idle machine" if question.cost in TIMED else ""
        return Answer(f"No student is known with its {question.cost}{where}.")
    names = {each.name: each for each in cheapest_first}
    best = frontier(
        {name: each.cost for name, each in names.items()}, {name: each.share for name, each in names.items()}
    )
    teacher = _costs(question, rows.loc[[TEACHER]], {}).get(TEACHER, math.nan)
    found = next((each for each in cheapest_first if each.share >= question.keep), None)
    share = f"{percent(question.keep, 0)} % of the teacher's {students[0].record.data['score_name']}"
    if found is None:
        most = names[best[-1]]
        sentence = f"No student keeps {share}; `{most.name}` keeps the most, {_kept(most)}."
    else:
        of_teacher = "" if math.isnan(teacher) else f", {percent(found.cost / teacher)} % of the teacher's"
        sentence = (
            f"The cheapest student that keeps {share} is `{found.name}`: it keeps {_kept(found)} and costs "
            f"{_shown(question, found.cost)}{of_teacher}."
        )
        if found.share - found.ci95 < question.keep:
            sentence += " Its interval reaches below that share."
    lines = [
        [name, _shown(question, names[name].cost), percent(names[name].cost / teacher), _kept(names[name])]
        for name in best
    ]
    return Answer(sentence, table_of(["student", "cost", "% of the teacher's", "keeps"], lines))


def _candidates(question: Question, table: pd.DataFrame, students: Sequence[Run]) -> Iterator[Candidate]:
    score = Score.of_table(table)
    rows = score.generic(table).set_index("method")
    teacher = rows.loc[TEACHER, "score_mean"]
    runs = by_label(students)
    costs = _costs(question, rows, runs)

    def candidate(name: str, scores: Sequence[float] | pd.Series, cost: float) -> Candidate:
        mean, half = mean_and_ci95(scores)
        share = teacher / mean if score.lower else mean / teacher
        return Candidate(name, cost, share, share * half / mean)

    for label, own in runs.items():
        yield candidate(label, [run.score for run in own if run.score is not None], costs.get(label, math.nan))
        for each in exported(own):
            timed = each.latency_ms * question.per_ms
            cost = {"bytes": each.bytes, **dict.fromkeys(TIMED, timed)}.get(question.cost, math.nan)
            yield candidate(f"{label} as {each.format}", each.scores, cost)


def _costs(question: Question, rows: pd.DataFrame, runs: dict[str, list[Run]]) -> dict[str, float]:
    """By row of the table. Bytes are those of the file of weights; of the teacher, who may have none, 4 a parameter."""
    if question.cost == "bytes":
        files = {label: own[0].folder / STUDENT for label, own in runs.items()}
        sizes = {label: float(file.stat().st_size) for label, file in files.items() if file.is_file()}
        return {TEACHER: 4 * float(rows["params"].astype("float64")[TEACHER]), **sizes}
    column = "latency_ms" if question.cost in TIMED else question.cost
    costs = rows[column].astype("float64")
    if question.cost in TIMED and BUSY in rows:
        costs = costs.mask(rows[BUSY].astype(bool))
    return {str(name): float(cost) * question.per_ms for name, cost in costs.items()}


def _kept(each: Candidate) -> str:
    half = "one seed" if math.isnan(each.ci95) else f"± {percent(each.ci95)}"
    return f"{percent(each.share)} % ({half})"


def _shown(question: Question, cost: float) -> str:
    if math.isnan(cost):
        return NONE
    figure = f"{cost:.3g}" if question.cost in TIMED else si(cost)
    return f"{figure} {COSTS[question.cost]}" if question.cost != "money" else f"{figure} for {COSTS['money']}"
