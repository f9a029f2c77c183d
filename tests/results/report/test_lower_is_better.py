"""A score of which lower is better, bits per byte, in table, sentences and pictures."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import pandas as pd
import pytest
from scipy import stats

from distillery.results.report.collect import collect
from distillery.results.report.formats import best_method, verdicts
from distillery.results.report.page import markdown_table
from distillery.results.report.plot import plot
from distillery.results.report.plot_timeline import methods_of
from distillery.results.report.selection import select
from distillery.results.report.table import method_table
from distillery.results.report.write import write_report

MakeRun = Callable[..., Path]
BASELINE, KD, WORSE = [2.50, 2.54, 2.52], [2.40, 2.43, 2.44], [2.60, 2.66, 2.63]
TEACHER = {"sha256": "t0", "score": 2.1, "params": 9, "flops": 9, "latency_ms": 9.0, "perplexity": 20.0}
DATA = {
    "name": "speeches", "fingerprint": "f", "train": 100, "val": 10, "test": 4,
    "score_name": "bits per byte", "higher_is_better": False,
}  # fmt: skip


def fill(make_run: MakeRun, method: str, scores: list[float], **more: Any) -> None:
    for seed, score in enumerate(scores):
        metrics = {"last": {"epoch": 2, "test_score": score, "perplexity": 30 + seed}}
        cost = {"params": 7, "embedding_params": 2, "flops": 6, "latency_ms": 1.0}
        timeline = [
            {"epoch": epoch, "step": epoch, "stage": "", "lr": 1.0, "score": score + 2 - epoch, "numbers": {"w": epoch}}
            for epoch in (1, 2)
        ]
        given = {"metrics": metrics, "data": DATA, "cost": cost, "timeline": timeline}
        make_run(method, seed, score, teacher=TEACHER, **(given | more))


@pytest.fixture
def study(make_run: MakeRun, tmp_path: Path) -> Path:
    for method, scores in (("baseline", BASELINE), ("kd", KD), ("worse", WORSE)):
        fill(make_run, method, scores)
    return tmp_path


def test_the_columns_have_its_name_and_better_is_less(study: Path, tmp_path: Path) -> None:
    table = method_table(select(collect([study])).students)
    rows = table.set_index("method")
    assert rows.loc["kd", "bits_per_byte_mean"] == pytest.approx(sum(KD) / 3)
    assert rows.loc["kd", "bits_per_byte_std"] == pytest.approx(pd.Series(KD).std())
    gain = [ours - theirs for ours, theirs in zip(KD, BASELINE, strict=True)]
    assert rows.loc["kd", "bits_per_byte_diff_mean"] == pytest.approx(sum(gain) / 3)
    low, high = stats.ttest_rel(KD, BASELINE).confidence_interval(0.95)
    assert rows.loc["kd", "bits_per_byte_diff_ci95"] == pytest.approx((high - low) / 2)
    assert rows.loc["kd", "gap_recovered"] == pytest.approx((2.52 - sum(KD) / 3) / (2.52 - 2.1))
    assert rows.loc["worse", "gap_recovered"] < 0
    assert rows["retention"].isna().all()
    assert not {"score_mean", "diff_mean"} & {*table.columns}
    assert best_method(table) == "kd"
    assert verdicts(table) == {"kd": "better than the baseline", "worse": "worse than the baseline"}


def test_a_teacher_that_is_not_better_has_no_gap(make_run: MakeRun, tmp_path: Path) -> None:
    fill(make_run, "baseline", BASELINE)
    for seed, score in enumerate(KD):
        make_run("kd", seed, score, data=DATA, teacher=TEACHER | {"score": 2.53})
    table = method_table(select(collect([tmp_path])).students)
    assert table["gap_recovered"].isna().all()


def test_what_is_written_and_drawn(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    table = write_report([study], out, "Speeches").table
    with (out / "report.csv").open() as file:
        header = next(csv.reader(file))
    assert header[:7] == [
        "method", "best", "n_seeds", "bits_per_byte_mean", "bits_per_byte_std", "bits_per_byte_diff_mean",
        "bits_per_byte_diff_ci95",
    ]  # fmt: skip
    text = (out / "report.md").read_text()
    assert "| method | seeds | bits per byte | perplexity | Δ baseline |" in text
    assert "retention" not in text
    assert "| **kd** | **3** | **2.4233 ± 0.0208** | **31.00** | **−0.0967 ± 0.0379** |" in text
    assert "| kd | better than the baseline | −0.0967 ± 0.0379 |" in text
    assert "| worse | worse than the baseline | +0.1100" in text
    assert "bits per byte, lower is better, on the test split" in text
    assert "in bits per byte, negative where it is better" in text
    assert "%)" not in text.split("## Definitions")[0].replace("params (% of teacher)", "").replace(" (22)", "")[:900]
    assert markdown_table(pd.read_csv(out / "report.csv")) == markdown_table(table)
    assert matplotlib.image.imread(out / "report.png").shape[1] == 1600
    students = select(collect([study])).students
    assert plot(table, students).axes
    (method,) = [each for each in methods_of(students) if each.name == "kd"]
    assert method.scores.iloc[-1].tolist() == pytest.approx(KD)  # as they are, not in percent
