"""The trials of a search: what was tried, what became of it, and which parameters mattered."""

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pandas as pd

from distillery.results.exports import size
from distillery.results.layout import IMPORTANCE, TRIALS_TABLE
from distillery.results.report.formats import NONE, with_spread
from distillery.results.report.markdown import section, table_of
from distillery.results.report.score import Score
from distillery.results.report.settings import in_label, settings_of, short_names

TRIAL = "trial"  # the column that tells trials.csv of a search from that of a study
COLUMNS = (TRIAL, "settings", "seed", "validation", "chosen", "outcome", "folder")
COSTS = ("latency_ms", "busy", "bytes", "max_latency_ms", "max_bytes")  # where there is a budget


@dataclass(frozen=True)
class Search:
    """The trials of a sweep, as its folder keeps them.

    Attributes:
        jobs: a row for each job, with the columns `COLUMNS` and `COSTS` of trials.csv: a trial has one for each seed.
        importance: of each parameter, the largest first; empty where there were too few trials.
    """

    jobs: pd.DataFrame
    importance: Mapping[str, float]

    @classmethod
    def read(cls, folders: Sequence[Path]) -> Self | None:
        """That of the sweep in these folders; None: there was no search, or more than one."""
        found = [folder for folder in folders if TRIAL in _table(folder / TRIALS_TABLE)]
        if len(found) != 1:
            return None
        importance = _table(found[0] / IMPORTANCE)
        return cls(_table(found[0] / TRIALS_TABLE), dict(importance.itertuples(index=False)))

    def write(self, folder: Path) -> None:
        """Write trials.csv and, where the importance is known, importance.csv."""
        self.jobs.to_csv(folder / TRIALS_TABLE, index=False)
        (folder / IMPORTANCE).unlink(missing_ok=True)
        if self.importance:
            table = pd.DataFrame(self.importance.items(), columns=["parameter", "importance"])
            table.to_csv(folder / IMPORTANCE, index=False)

    @property
    def runs(self) -> int:
        """How many run folders it has."""
        return self.jobs["folder"].nunique()

    @property
    def names(self) -> dict[str, str]:
        """The short name of each parameter."""
        return short_names([*settings_of(self.jobs["settings"].iloc[0])])

    def values(self, trial: int) -> list[str]:
        """The values of the parameters as they are shown."""
        settings = settings_of(self.jobs.loc[self.jobs[TRIAL] == trial, "settings"].iloc[0])
        return [in_label(_parsed(settings[key])) for key in self.names]

    def named(self, trial: int) -> str:
        """`trial 3, temperature=2, lr=0.1`."""
        values = zip(self.names.values(), self.values(trial), strict=True)
        return ", ".join([f"trial {trial}", *(f"{name}={value}" for name, value in values)])


def trials_table(search: Search, score: Score) -> tuple[list[str], list[list[str]], int | None]:
    """Headings and rows of the trials, and the place of the best row; those drawn alike share a row.

    Args:
        score: that of the validation.
    """
    jobs, costs = search.jobs, "bytes" in search.jobs
    header = ["trial", *search.names.values(), *(_cost_headings(jobs) if costs else ()), "seeds", score.validation]
    drawn: dict[tuple[str, ...], list[int]] = {}
    for trial, own in jobs.groupby(TRIAL):
        drawn.setdefault((own["settings"].iloc[0], *own["folder"]), []).append(trial)
    rows: list[list[str]] = []
    best = None
    for trials in drawn.values():
        own = jobs[jobs[TRIAL] == trials[0]]
        taken = _costs(own.iloc[-1]) if costs else []
        cells = [*search.values(trials[0]), *taken, str(len(own)), _validation(own, score)]
        if jobs.loc[jobs[TRIAL].isin(trials), "chosen"].any():
            best = len(rows)
        rows.append([", ".join(map(str, trials)), *cells])
    return header, rows, best


def remarks(search: Search) -> list[str]:
    """Which trial is the best, and how much each parameter matters."""
    said, best = [], search.jobs[search.jobs["chosen"]]
    if not best.empty:
        said.append(f"Best on the validation split: {search.named(best[TRIAL].iloc[0])}.")
    if search.importance:
        shares = ", ".join(f"{search.names[key]} {weight:.2f}" for key, weight in search.importance.items())
        said.append(f"Importance of the parameters: {shares}.")
    return said


def search_section(search: Search | None, score: Score) -> str:
    """The trials as a section of the report."""
    if search is None:
        return ""
    header, rows, best = trials_table(search, score)
    rows = [[f"**{cell}**" for cell in row] if place == best else row for place, row in enumerate(rows)]
    about = (
        "The validation score of a trial is the mean over its seeds, ± sample deviation. Importance, told of ten "
        "trials or more: a parameter's share of what a random forest learns of the score (mean decrease in impurity). "
        f"All jobs: [{TRIALS_TABLE}]({TRIALS_TABLE})."
    )
    heading = [" ".join(each.split("\n")) for each in header]
    return section("Trials", table_of(heading, rows), *remarks(search), about)


def _validation(jobs: pd.DataFrame, score: Score) -> str:
    """The score of a trial, or why it has none."""
    for outcome in ("over budget", "failed"):
        if outcome in [*jobs["outcome"]]:
            return outcome
    known = jobs["validation"].dropna()
    return NONE if known.empty else with_spread(known.mean(), known.std(), score)


def _cost_headings(jobs: pd.DataFrame) -> tuple[str, str]:
    """Of the two columns of costs, with the budget if all trials have one."""
    latency, largest = (jobs[each].dropna().unique() for each in ("max_latency_ms", "max_bytes"))
    return (
        f"ms\n≤ {latency[0]:g}" if len(latency) == 1 else "ms",
        f"file\n≤ {size(largest[0])}" if len(largest) == 1 else "file",
    )


def _costs(job: Any) -> list[str]:
    if math.isnan(job.bytes):
        return [NONE, NONE]
    return [f"{job.latency_ms:.3g}" + " (busy)" * bool(job.busy), size(job.bytes)]


def _parsed(written: str) -> Any:
    """The value of a setting: a number, a list, …; a text as it is."""
    try:
        return ast.literal_eval(written)
    except (SyntaxError, ValueError):
        return written


def _table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        return pd.DataFrame()
    return pd.read_csv(path, dtype={"settings": str}).fillna({"settings": ""})
