"""The report's files: the columns, the sentences, the picture."""

import csv
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import pandas as pd
import pytest
from rich.console import Console

from distillery.results.report.formats import best_method, points, si, verdict
from distillery.results.report.page import markdown_table
from distillery.results.report.terminal import terminal_table
from distillery.results.report.write import title_of, write_report

MakeRun = Callable[..., Path]
HEADER = (
    "method,best,n_seeds,score_mean,score_std,diff_mean,diff_ci95,p,p_holm,retention,retention_ci95,gap_recovered,"
    "gap_ci95,agreement,params,flops,latency_ms,"
    "score_best_mean,score_best_std,diff_best_mean,diff_best_ci95,p_best,p_best_holm"
)


@pytest.fixture
def study(make_run: MakeRun, tmp_path: Path) -> Path:
    """A teacher at 0.98, a baseline near 0.82, kd better, at the same, rkd worse, and runs to be left out."""
    gains = {"kd": [0.06, 0.07, 0.08], "at": [-0.05, 0.06, 0.0], "rkd": [-0.20, -0.21, -0.20], "baseline": [0, 0, 0]}
    for method, differences in gains.items():
        for seed, (base, difference) in enumerate(zip([0.80, 0.84, 0.82], differences, strict=True)):
            make_run(method, seed, base + difference)
    make_run("dkd", 0, None, status="failed", error="Traceback ...\nValueError: loss.dkd is NaN", metrics={})
    make_run("kd", 0, 0.5, folder="older", started="2020-01-01")
    make_run("kd", 3, 0.9)
    make_run("baseline", 0, 0.98, folder="teacher", student_sha256="t0")
    return tmp_path


def test_the_csv_has_exactly_its_columns_and_raw_numbers(study: Path, tmp_path: Path) -> None:
    frame = write_report([study], tmp_path / "out", "Study").table
    text = (tmp_path / "out/report.csv").read_text().splitlines()
    assert text[0] == HEADER
    rows = {row["method"]: row for row in csv.DictReader(text)}
    assert list(rows)[:2] == ["teacher", "baseline"]
    assert set(rows) == {"teacher", "baseline", "kd", "at", "rkd"}
    assert float(rows["baseline"]["score_mean"]) == pytest.approx(0.82)
    assert rows["baseline"]["params"] == "5000"
    assert rows["baseline"]["diff_mean"] == rows["teacher"]["gap_recovered"] == ""
    assert list(frame["method"]) == list(rows)


def test_the_markdown_says_what_the_numbers_allow(study: Path, tmp_path: Path) -> None:
    write_report([study], tmp_path / "out", "Study of five")
    text = (tmp_path / "out/report.md").read_text()
    assert text.startswith("# Study of five\n\n**The student (`kd`) keeps 91.1 % (")
    # 0.86 0.91 0.90 0.90 over 0.82: mean 0.8925, std 0.0222; 0.07 ± 2.484 cm over three seeds in common
    assert "| **kd** | **4** | **89.25 ± 2.22** | **+7.00 ± 2.48** |" in text
    assert "| baseline | 3 | 82.00 ± 2.00 | – | 83.7 | – | 5k | 600k | 0.3 |" in text
    assert "| teacher | 1 | 98.00 |" in text
    assert "| at | no measurable gain | +0.33 ± 13.68 | 0.926 | 0.926 |" in text
    assert "| rkd | worse than the baseline | −20.33" in text
    assert "| kd | better than the baseline | +7.00" in text
    left_out = text.split("## Not in the table")[1].split("##")[0]
    assert "dkd, seed 0): failed: ValueError: loss.dkd is NaN" in left_out
    assert "older` (kd, seed 0): there is a later run" in left_out
    assert "teacher` (baseline, seed 0): its student is a teacher of the other runs" in left_out
    assert "`baseline` has no run of seed 3" in left_out
    assert f"distill-report 'runs=[{study}]' out={tmp_path / 'out'}" in text


def test_the_table_is_the_same_from_the_csv(study: Path, tmp_path: Path) -> None:
    table = write_report([study], tmp_path / "out", "Study").table
    read = pd.read_csv(tmp_path / "out/report.csv")
    assert markdown_table(read) == markdown_table(table)
    assert markdown_table(read) in (tmp_path / "out/report.md").read_text()


def test_a_report_that_is_made_again_keeps_its_title(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("kd", 0, 0.9, folder="study/kd")
    study = tmp_path / "study"
    assert title_of([study]) == "Distillation report"
    write_report([study], study, "Study of five")
    assert title_of([study]) == "Study of five"
    assert title_of([study, tmp_path]) == "Distillation report", "it is about more than the study"


def test_a_clean_study_has_nothing_left_out(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("baseline", 0, 0.8)
    make_run("kd", 0, 0.9)
    write_report([tmp_path], tmp_path, "Clean")
    text = (tmp_path / "report.md").read_text()
    assert "Not in the table" not in text
    assert "| kd | one seed: no interval, so nothing is claimed | +10.00 | – | – |" in text


def test_the_terminal_shows_every_row(study: Path, tmp_path: Path) -> None:
    console = Console(width=80, record=True, quiet=False, file=(tmp_path / "terminal").open("w"))
    console.print(terminal_table(write_report([study], tmp_path / "out", "Study").table, "Study"))
    scores, costs = console.export_text().split("Cost")
    rows = {line.split()[0]: line for line in scores.splitlines() if line.strip()}
    assert {"Study", "teacher", "baseline", "kd", "at", "rkd"} <= rows.keys()
    assert all(cell in rows["kd"] for cell in ("89.25 ± 2.22", "+7.00 ± 2.48")), "each cell on one line, in 80 columns"
    assert "…" not in scores
    assert [line.split()[:3] for line in costs.splitlines() if "k " in line] == [
        ["teacher", "270k", "40M"],
        ["students", "5k", "600k"],
    ]


@pytest.mark.parametrize("n_methods", [1, 14])
def test_the_picture_is_drawn_and_grows_with_the_methods(make_run: MakeRun, tmp_path: Path, n_methods: int) -> None:
    names = ["baseline", *(f"method_{i}_with_quite_a_long_name" for i in range(n_methods - 1))]
    for i, name in enumerate(names):
        for seed in range(3):
            make_run(name, seed, 0.8 + 0.01 * i + 0.003 * seed)
    write_report([tmp_path], tmp_path, "Picture")
    image = matplotlib.image.imread(tmp_path / "report.png")
    assert image.shape[1] == 1600
    assert image.shape[0] == 700 if n_methods == 1 else image.shape[0] > 1000
    colours = {tuple(colour) for colour in (image[::2, ::2, :3].reshape(-1, 3) * 255).round().astype(int)}
    expected = {(110, 110, 110)} if n_methods == 1 else {(110, 110, 110), (0, 114, 178)}
    assert expected <= colours  # the baseline's grey; the teacher's blue, where a run has a teacher


@pytest.mark.parametrize("case", ["no teacher", "no baseline", "no cost", "one seed", "equal cost"])
def test_the_picture_does_without_what_is_missing(make_run: MakeRun, tmp_path: Path, case: str) -> None:
    changes = {
        "no teacher": {"teachers": {}},
        "no cost": {"cost": {}, "teachers": {"main": {"sha256": "t", "score": 0.9}}},
        "equal cost": {"cost": {"params": 270_000, "flops": 40_000_000, "latency_ms": 3.0}},
    }.get(case, {})
    for seed in range(1 if case == "one seed" else 3):
        make_run("kd", seed, 0.9 - 0.01 * seed, **changes)
        if case != "no baseline":
            make_run("baseline", seed, 0.8 + 0.01 * seed, **{**changes, "teachers": {}})
    write_report([tmp_path], tmp_path, "Case")
    assert matplotlib.image.imread(tmp_path / "report.png").shape[:2] == (700, 1600)


@pytest.mark.parametrize(
    ("mean", "ci95", "said"),
    [
        (0.02, 0.01, "better"),
        (0.02, 0.02, "no measurable gain"),
        (-0.01, 0.02, "no measurable gain"),
        (-0.03, 0.02, "worse"),
        (0.02, float("nan"), "one seed"),
        (float("nan"), float("nan"), "not compared"),
    ],
)
def test_verdicts(mean: float, ci95: float, said: str) -> None:
    assert said in verdict(mean, ci95)


def test_numbers_are_readable() -> None:
    assert [si(n) for n in (42, 5130, 271_904, 40_123_456, 1.5e9)] == ["42", "5.13k", "272k", "40.1M", "1.5G"]
    assert points(0.0123, 0.004) == "+1.23 ± 0.40"
    assert points(-0.0123, float("nan")) == "−1.23"


def test_the_best_is_the_best_student_and_may_be_the_baseline(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("kd", 0, 0.7)
    make_run("baseline", 0, 0.8)
    assert best_method(write_report([tmp_path], tmp_path, "Best").table) == "baseline"
