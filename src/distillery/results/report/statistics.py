"""The statistics of a report, all over seeds: paired t tests, their intervals, and Holm's correction over methods."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

ALPHA = 0.05


class PairedTest(NamedTuple):
    """A two-sided t test of differences against 0.

    Attributes:
        mean: of the differences.
        ci95: half-width of its 95 % interval.
        p: the probability of a mean that is at least as far from 0, if the true one is 0.
    """

    mean: float
    ci95: float
    p: float


def mean_and_ci95(values: Sequence[float] | pd.Series) -> tuple[float, float]:
    """Mean, and half-width of its 95 % t interval; NaN where there are too few values for one.

    For differences paired by seed this is the paired t interval.
    """
    series = pd.Series(values, dtype="float64")
    return float(series.mean()), float(stats.t.ppf(1 - ALPHA / 2, len(series) - 1) * series.sem())


def paired_test(ours: pd.Series, theirs: pd.Series) -> PairedTest:
    """Test `ours − theirs` on the seeds that both have; NaN where there are too few of them."""
    differences = (ours - theirs).dropna()
    mean, ci95 = mean_and_ci95(differences)
    error = differences.sem()
    if error == 0:  # the same difference for each seed
        return PairedTest(mean, ci95, 0.0 if mean else 1.0)
    return PairedTest(mean, ci95, float(2 * stats.t.sf(abs(mean) / error, len(differences) - 1)))


def ratio_and_ci95(ours: pd.Series, theirs: pd.Series) -> tuple[float, float]:
    """Ratio of the means over the seeds that both have, and half-width of its 95 % interval.

    The interval is that of the delta method for paired samples: the t interval of the mean of `ours − ratio · theirs`,
    divided by the mean of `theirs`. It is Fieller's where the spread of `theirs` is small beside its mean, and exact
    where `theirs` is the same for all seeds, as one teacher is.
    """
    both = pd.concat([ours, theirs], axis=1, keys=["ours", "theirs"]).dropna()
    ratio = both["ours"].mean() / both["theirs"].mean()
    _, half = mean_and_ci95(both["ours"] - ratio * both["theirs"])
    return float(ratio), float(half / abs(both["theirs"].mean()))


def holm(p_values: pd.Series) -> pd.Series:
    """The p-values corrected for their number, so that the chance of any false finding is at most `ALPHA`.

    Sorted, the i-th of m is multiplied by m − i + 1, and none is lower than the one before (Holm 1979). NaN stays NaN
    and does not count.
    """
    known = p_values.dropna().sort_values(kind="stable")
    corrected = (known * np.arange(len(known), 0, -1)).cummax().clip(upper=1.0)
    return corrected.reindex(p_values.index)
