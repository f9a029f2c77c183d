"""The table's figures against scipy and against numbers worked out by hand."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from distillery.results.report.collect import collect
from distillery.results.report.selection import select
from distillery.results.report.statistics import mean_and_ci95
from distillery.results.report.table import BEST_EPOCH, COLUMNS, method_table

MakeRun = Callable[..., Path]
BASELINE = [0.80, 0.84, 0.82, 0.86]
KD = [0.88, 0.90, 0.86, 0.92]


@pytest.fixture
def table(tmp_path: Path) -> Callable[[], pd.DataFrame]:
    return lambda: method_table(select(collect([tmp_path])).students).set_index("method")


def fill(make_run: MakeRun, method: str, scores: list[float], **changes: Any) -> None:
    for seed, score in enumerate(scores):
        make_run(method, seed, score, **changes)


def test_the_time_of_a_training(make_run: MakeRun, table: Callable[[], pd.DataFrame]) -> None:
    for seed, seconds in enumerate((2.0, 5.0)):
        make_run("baseline", seed, 0.8, fit_seconds=seconds)
    fill(make_run, "kd", KD)  # of an earlier version
    found = table().fit_seconds
    assert found["baseline"] == 3.5
    assert found[["teacher", "kd"]].isna().all()


def test_every_figure_of_a_small_study(make_run: MakeRun, table: Callable[[], pd.DataFrame]) -> None:
    fill(make_run, "rkd", [0.7] * 4)
    fill(make_run, "kd", KD)
    fill(make_run, "baseline", BASELINE)
    found = table()
    assert list(found.reset_index().columns) == [*COLUMNS, *BEST_EPOCH]
    assert list(found.index) == ["teacher", "baseline", "rkd", "kd"]

    kd = found.loc["kd"]
    assert kd.n_seeds == 4
    assert kd.score_mean == pytest.approx(0.89)
    assert kd.score_std == pytest.approx(math.sqrt((0.01**2 + 0.01**2 + 0.03**2 + 0.03**2) / 3))
    assert kd.diff_mean == pytest.approx(0.06)
    low, high = stats.ttest_rel(KD, BASELINE).confidence_interval(0.95)
    assert kd.diff_ci95 == pytest.approx((high - low) / 2)
    assert kd.retention == pytest.approx(0.89 / 0.98)
    assert kd.gap_recovered == pytest.approx(0.06 / 0.15)
    assert (kd.params, kd.flops) == (5000, 600_000)
    assert kd.latency_ms == pytest.approx(0.3)  # the least of 0.3, 0.4, 0.5, 0.6: they are of one network

    assert found.loc["rkd"].gap_recovered == pytest.approx(-0.13 / 0.15)
    assert found.loc["baseline", ["diff_mean", "diff_ci95", "gap_recovered"]].isna().all()

    teacher = found.loc["teacher"]
    assert (teacher.n_seeds, teacher.score_mean, teacher.retention) == (1, 0.98, 1.0)
    assert pd.isna(teacher.score_std)
    assert (teacher.params, teacher.flops, teacher.latency_ms) == (270_000, 40_000_000, 3.0)


def test_seeds_are_paired_by_number_not_by_order(make_run: MakeRun, table: Callable[[], pd.DataFrame]) -> None:
    for seed, score in [(3, 0.9), (1, 0.7), (9, 0.1)]:
        make_run("kd", seed, score)
    for seed, score in [(1, 0.6), (2, 0.2), (3, 0.7)]:
        make_run("baseline", seed, score)
    row = table().loc["kd"]
    assert row.diff_mean == pytest.approx(np.mean([0.9 - 0.7, 0.7 - 0.6]))
    low, high = stats.ttest_rel([0.9, 0.7], [0.7, 0.6]).confidence_interval(0.95)
    assert row.diff_ci95 == pytest.approx((high - low) / 2)


@pytest.mark.parametrize(("score", "real"), [(0.85, False), (0.88, True), (0.70, False)])
def test_the_gap_is_empty_when_the_teacher_is_inside_the_interval(
    make_run: MakeRun, table: Callable[[], pd.DataFrame], score: float, real: bool
) -> None:
    low, high = stats.ttest_1samp(BASELINE, score).confidence_interval(0.95)
    assert real == (score > high)  # the case is what it says
    assert low < high
    teacher = {"sha256": "t", "score": score, "params": 9, "flops": 9, "latency_ms": 9.0}
    fill(make_run, "baseline", BASELINE)
    fill(make_run, "kd", KD, teacher=teacher)
    gap = table().loc["kd"].gap_recovered
    assert gap == pytest.approx(0.06 / (score - 0.83)) if real else pd.isna(gap)


def test_one_seed_has_no_spread_no_interval_and_no_gap(make_run: MakeRun, table: Callable[[], pd.DataFrame]) -> None:
    make_run("baseline", 0, 0.8)
    make_run("kd", 0, 0.9)
    row = table().loc["kd"]
    assert row.diff_mean == pytest.approx(0.1)
    assert row.retention == pytest.approx(0.9 / 0.98)
    assert row[["score_std", "diff_ci95", "gap_recovered"]].isna().all()


def test_each_seeds_own_teacher_counts_once(make_run: MakeRun, table: Callable[[], pd.DataFrame]) -> None:
    teachers = [
        {"sha256": f"t{s}", "score": score, "latency_ms": s + 1.0} for s, score in enumerate([0.97, 0.99, 0.95])
    ]
    for seed, (score, teacher) in enumerate(zip([0.80, 0.84, 0.82], teachers, strict=True)):
        make_run("baseline", seed, score)
        make_run("kd", seed, 0.9, teacher=teacher)
        make_run("at", seed, 0.9, teacher=teacher)
    row = table().loc["teacher"]
    assert row.n_seeds == 3
    assert row.score_mean == pytest.approx(0.97)
    assert row.score_std == pytest.approx(0.02)
    assert row.latency_ms == pytest.approx(1.0)
    low, high = stats.ttest_rel([0.97, 0.99, 0.95], [0.80, 0.84, 0.82]).confidence_interval(0.95)
    assert row.diff_mean == pytest.approx((low + high) / 2)
    assert row.diff_ci95 == pytest.approx((high - low) / 2)


def test_without_baseline_or_teacher_their_figures_are_empty(
    make_run: MakeRun, table: Callable[[], pd.DataFrame]
) -> None:
    fill(make_run, "kd", KD, teachers={}, cost={})
    found = table()
    assert list(found.index) == ["kd"]
    empty = ["diff_mean", "diff_ci95", "retention", "gap_recovered", "agreement", "params", "flops", "latency_ms"]
    assert found.loc["kd", empty].isna().all()


def test_the_interval_is_scipys() -> None:
    values = [0.1, 0.4, -0.2, 0.3, 0.25]
    mean, half = mean_and_ci95(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert all(map(math.isnan, mean_and_ci95([])))


def write_config(folder: Path, **settings: Any) -> None:
    """The resolved config that a run leaves, with these settings by dotted path (`__` for a dot)."""
    config: dict[str, Any] = {"name": folder.name, "paths": {"run": str(folder)}, "loss": {"kd": {"weight": 1.0}}}
    for path, value in settings.items():
        *parents, last = path.split("__")
        node = config
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML


def test_every_setting_of_a_sweep_has_its_row(make_run: MakeRun, table: Callable[[], pd.DataFrame]) -> None:
    """A sweep over temperatures was one row: that of the job which was started last."""
    for seed, base in enumerate([0.80, 0.84, 0.82]):
        write_config(make_run("baseline", seed, base), seed=seed, data__seed=seed)
        for temperature, gain in ((1.0, 0.01), (2.0, 0.05), (4.0, 0.03)):
            run = make_run("kd", seed, base + gain, folder=f"kd_{temperature}_{seed}")
            write_config(run, seed=seed, data__seed=seed, loss__kd__temperature=temperature)
        write_config(make_run("hint", seed, base), seed=seed, teachers__main__weights=f"teacher{seed}")
    found = table()
    assert list(found.index) == [
        "teacher",
        "baseline",
        "kd temperature=1",
        "kd temperature=2",
        "kd temperature=4",
        "hint",
    ]
    assert list(found.loc["kd temperature=1":"kd temperature=4", "diff_mean"]) == pytest.approx([0.01, 0.05, 0.03])
    assert set(found.loc["baseline":"hint", "n_seeds"]) == {3}


def test_a_method_is_compared_with_the_baseline_of_its_own_settings(
    make_run: MakeRun, table: Callable[[], pd.DataFrame]
) -> None:
    for rate, base, gain in ((0.1, 0.8, 0.05), (0.2, 0.6, 0.1)):
        for method, score in (("baseline", base), ("kd", base + gain)):
            run = make_run(method, 0, score, folder=f"{method}_{rate}")
            write_config(run, seed=0, optim__optimizer__lr=rate)
    run = make_run("kd", 0, 0.9, folder="kd_0.3")
    write_config(run, seed=0, optim__optimizer__lr=0.3)
    found = table()
    assert list(found.index) == ["teacher", "baseline lr=0.1", "baseline lr=0.2", "kd lr=0.1", "kd lr=0.2", "kd lr=0.3"]
    assert list(found["diff_mean"].loc["kd lr=0.1":"kd lr=0.2"]) == pytest.approx([0.05, 0.1])
    assert pd.isna(found.loc["kd lr=0.3", "diff_mean"]), "there is no baseline with this rate"


def test_a_second_teacher_is_not_averaged_into_the_first(make_run: MakeRun, table: Callable[[], pd.DataFrame]) -> None:
    """All distinct teachers were averaged: of one at 98 and one at 20 the report made 59.0 ± 55.2."""
    main = {"source": "teacher", "sha256": "t0", "score": 0.98, "params": 9, "flops": 9, "latency_ms": 3.0}
    weak = {**main, "sha256": "t1", "score": 0.2, "params": 3}
    for seed, base in enumerate(BASELINE):
        make_run("baseline", seed, base)
        make_run("kd", seed, base + 0.05, teacher=main)
        make_run("both", seed, base + 0.02, teachers={"main": main, "b": weak})
        make_run("other", seed, base, teachers={"main": weak})
    found = table()
    assert list(found.index[:3]) == ["teacher", "teacher b", "teacher of other"]
    assert list(found["score_mean"][:3]) == pytest.approx([0.98, 0.2, 0.2])
    assert list(found["n_seeds"][:3]) == [1, 1, 1]
    assert found.loc["kd", "retention"] == pytest.approx(0.88 / 0.98)
    assert found.loc["both", "gap_recovered"] == pytest.approx(0.02 / 0.15)
