"""What share of the training loss each of its terms had, epoch by epoch, from a run's metrics.csv."""

from pathlib import Path

import pandas as pd

from distillery.results.layout import METRICS
from distillery.results.record import RunRecord

WEIGHTED = "weighted/"  # before a loss's name: its value times its weight, as training logs it


def loss_shares(folder: Path, record: RunRecord) -> pd.DataFrame:
    """A column for each loss, a row for each epoch in which they were logged; of one loss, or none, empty.

    Shares are of the sum of absolute values, as a loss may be negative.
    """
    parts = [pd.read_csv(path) for path in sorted(folder.glob(METRICS))]
    ends = pd.Series({entry["step"]: entry["epoch"] for entry in record.timeline}, dtype="float64").sort_index()
    if not parts or ends.empty:
        return pd.DataFrame()
    logged = pd.concat(parts)
    losses = logged.set_index("step").filter(like=WEIGHTED).dropna(how="all")
    if losses.shape[1] < 2:
        return pd.DataFrame()
    place = ends.index.searchsorted(losses.index).clip(max=len(ends) - 1)
    means = losses.abs().groupby(ends.iloc[place].to_numpy()).mean().fillna(0.0)
    return means.div(means.sum(axis=1), axis=0).rename(columns=lambda name: name.removeprefix(WEIGHTED))
