"""Which settings a study's trials have chosen for each method, and of how many."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from distillery.results.layout import TRIALS_TABLE
from distillery.results.report.formats import in_unit
from distillery.results.report.markdown import section, table_of
from distillery.results.report.score import Score
from distillery.results.report.search import TRIAL
from distillery.results.report.settings import settings_of, short_names

COLUMNS = ("method", "settings", "seed", "validation", "chosen")  # of trials.csv


def trials_of(folders: Sequence[Path]) -> pd.DataFrame:
    """The trials of the studies in these folders; empty where there are none."""
    tables = [pd.read_csv(path) for folder in folders if (path := folder / TRIALS_TABLE).is_file()]
    own = [table for table in tables if TRIAL not in table]  # others are those of searches
    return pd.concat(own) if own else pd.DataFrame(columns=COLUMNS)


def chosen_section(trials: pd.DataFrame, score: Score) -> str:
    """A row for each method: the values that were tried, those that were chosen, and the range of validation scores.

    Args:
        trials: see `trials_of`.
        score: by which was chosen.
    """
    if trials.empty:
        return ""
    rows = []
    for method, own in trials.groupby("method", sort=False):
        values: dict[str, list[str]] = {}
        for settings in own["settings"]:
            for key, value in settings_of(settings).items():
                values.setdefault(key, []).append(value)
        best = settings_of(own.loc[own["chosen"], "settings"].iloc[0])
        names = short_names([*values])
        tried = "; ".join(f"{names[key]} {', '.join(dict.fromkeys(each))}" for key, each in values.items())
        chosen = ", ".join(f"{names[key]}={value}" for key, value in best.items())
        low, high = (in_unit(value, score) for value in (own["validation"].min(), own["validation"].max()))
        rows.append([str(method), tried, chosen, str(len(own)), f"{low} to {high}"])
    seeds = ", ".join(str(seed) for seed in trials["seed"].unique())
    return section(
        "Chosen settings",
        f"Every combination was tried with seed {seeds}, which is in no other table, and the one with the best "
        "validation score was kept. What was chosen for the baseline holds for all methods. All trials: "
        f"[{TRIALS_TABLE}]({TRIALS_TABLE}).",
        table_of(["method", "tried", "chosen", "trials", score.validation], rows, texts=3),
    )
