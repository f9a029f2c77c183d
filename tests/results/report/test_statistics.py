"""Paired tests, intervals and corrections against SciPy, R's p.adjust and Fieller's theorem."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from distillery.results.report.statistics import holm, paired_test, ratio_and_ci95

OURS = pd.Series({0: 0.88, 1: 0.90, 2: 0.86, 3: 0.92, 7: 0.1})
THEIRS = pd.Series({3: 0.86, 2: 0.82, 1: 0.84, 0: 0.80, 9: 0.2})


def test_the_paired_test_is_scipys_on_the_seeds_in_common() -> None:
    found = paired_test(OURS, THEIRS)
    expected = stats.ttest_rel([0.88, 0.90, 0.86, 0.92], [0.80, 0.84, 0.82, 0.86])
    low, high = expected.confidence_interval(0.95)
    assert found == pytest.approx(((low + high) / 2, (high - low) / 2, expected.pvalue))


def test_a_difference_without_spread_is_certain_or_none() -> None:
    same = pd.Series([0.5, 0.25, 0.75])
    assert paired_test(same, same) == (0, 0, 1)
    assert paired_test(same + 0.25, same) == (0.25, 0, 0)


@pytest.mark.parametrize("seeds", [0, 1])
def test_too_few_seeds_have_no_interval_and_no_p(seeds: int) -> None:
    _, ci95, p = paired_test(OURS[:seeds], THEIRS)
    assert math.isnan(ci95)
    assert math.isnan(p)


def test_holm_is_that_of_r() -> None:
    """R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") gives 0.03 0.06 0.06 0.02; NA is not counted."""
    found = holm(pd.Series([0.01, 0.04, np.nan, 0.03, 0.005], index=[*"abcde"]))
    assert found.drop("c").tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert math.isnan(found["c"])
    assert holm(pd.Series([0.4, 0.6])).tolist() == pytest.approx([0.8, 0.8])
    assert holm(pd.Series([0.7, 0.9])).tolist() == [1, 1]


def test_of_one_teacher_the_interval_of_retention_is_that_of_the_score() -> None:
    ours = pd.Series([0.90, 0.93, 0.89])
    ratio, half = ratio_and_ci95(ours, pd.Series([0.96] * 3))
    low, high = stats.ttest_1samp(ours / 0.96, 0).confidence_interval(0.95)
    assert (ratio - half, ratio + half) == pytest.approx((low, high))


@pytest.mark.slow
def test_of_paired_teachers_it_is_nearly_fiellers() -> None:
    """Fieller (1954): the ratios r for which a t test does not reject that the mean of ours - r * theirs is 0."""
    draw = np.random.default_rng(0)
    theirs = pd.Series(0.9 + 0.01 * draw.standard_normal(8))
    ours = 0.93 * theirs + 0.01 * draw.standard_normal(8)
    ratio, half = ratio_and_ci95(ours, theirs)
    grid = np.linspace(0.85, 1.0, 30_001)
    kept = [r for r in grid if stats.ttest_1samp(ours - r * theirs, 0).pvalue >= 0.05]
    assert (ratio - half, ratio + half) == pytest.approx((kept[0], kept[-1]), abs=1e-4)
    assert 0.005 < half < 0.02
