"""What a report says of runs on texts: savings without the embeddings, scores by their names, rows that are tokens."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from distillery.core.errors import UserError
from distillery.results.report.collect import collect
from distillery.results.report.page import markdown_table
from distillery.results.report.selection import select
from distillery.results.report.table import BEST_EPOCH, COLUMNS
from distillery.results.report.terminal import terminal_table
from distillery.results.report.write import write_report

MakeRun = Callable[..., Path]
# 12,000 of the parameters are embeddings in both; the rest is 10,000 in the teacher and 4,000 in the student.
TEACHER = {
    "sha256": "t", "score": 0.8, "params": 22_000, "embedding_params": 12_000, "flops": 900, "latency_ms": 9.0,
}  # fmt: skip
COST = {"params": 16_000, "embedding_params": 12_000, "flops": 400, "latency_ms": 6.0}


@pytest.fixture
def text_run(make_run: MakeRun) -> MakeRun:
    """`make_run` with the costs of a transformer and those of its teacher."""

    def make(method: str, seed: int, score: float, **changes: Any) -> Path:
        return make_run(method, seed, score, **{"teacher": TEACHER, "cost": COST, **changes})

    return make


def definitions(folder: Path) -> str:
    write_report([folder], folder, "Texts")
    return (folder / "report.md").read_text().split("## Definitions")[1]


def data(**more: Any) -> dict[str, Any]:
    return {"name": "glosses", "train": 100, "val": 200, "test": 4, "score_name": "accuracy", **more}


def test_savings_are_to_the_teacher_with_and_without_embeddings(text_run: MakeRun, tmp_path: Path) -> None:
    for seed, (theirs, own) in enumerate([(10.0, 5.0), (30.0, 10.0), (8.0, 8.0)]):
        text_run("baseline", seed, 0.7)
        teacher, cost = {**TEACHER, "latency_ms": theirs}, {**COST, "latency_ms": own}
        text_run("kd", seed, 0.76, teacher=teacher, cost=cost)
    write_report([tmp_path], tmp_path, "Texts")
    with (tmp_path / "report.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    kd = rows["kd"]
    added = ["non_embedding_params", "non_embedding_ratio", "params_ratio", "speed_up"]
    assert list(kd) == [*COLUMNS, *added, *BEST_EPOCH]
    assert [float(kd[name]) for name in added] == pytest.approx([4_000, 0.4, 16 / 22, 8 / 5])
    assert kd["params"] == "16000"
    assert [float(rows["teacher"][name]) for name in added] == [10_000, 1, 1, 1]
    baseline = [float(rows["baseline"][name]) for name in added]
    assert baseline == pytest.approx([4_000, 0.4, 16 / 22, 8 / 5]), "the same network, measured as 6"


def test_the_table_shows_them_beside_retention(text_run: MakeRun, tmp_path: Path) -> None:
    for seed in range(2):
        text_run("kd", seed, 0.76)
    table = write_report([tmp_path], tmp_path, "Texts").table
    text = (tmp_path / "report.md").read_text()
    assert "| retention % | speed-up | non-embedding params (% of teacher) | params (% of teacher) | FLOPs |" in text
    assert "| **95.0** | **1.50×** | **4k (40)** | **16k (73)** |" in text
    assert "| 100.0 | 1.00× | 10k (100) | 22k (100) |" in text
    assert "**speed-up**: latency of the teacher ÷ that of the student" in text
    assert markdown_table(pd.read_csv(tmp_path / "report.csv")) == markdown_table(table)


def test_the_terminal_has_them_within_80_columns(text_run: MakeRun, tmp_path: Path) -> None:
    latency = {"latency": {"minimum_ms": 5.0, "busy": False, "input": [128]}}
    for seed in range(2):
        text_run("kd", seed, 0.76 + 0.01 * seed, cost=COST | latency, teacher=TEACHER | latency)
        text_run("baseline", seed, 0.7, cost=COST | latency)
    table = write_report([tmp_path], tmp_path, "Texts").table
    console = Console(width=80, record=True, file=(tmp_path / "terminal").open("w"))
    console.print(terminal_table(table, "Texts"))
    text = console.export_text()
    for cell in ["teacher", "baseline", "95.6", "1.50×", "4k (40)", "16k (73)", "128 tokens", "76.50"]:
        assert cell in text
    assert "…" not in text


def test_what_is_not_known_is_empty(text_run: MakeRun, tmp_path: Path) -> None:
    old = {key: value for key, value in COST.items() if key != "embedding_params"}
    text_run("baseline", 0, 0.7, cost=old)
    text_run("kd", 0, 0.75, cost=old)
    text_run("kd", 1, 0.75)
    rows = write_report([tmp_path], tmp_path, "Texts").table.set_index("method")
    assert pd.isna(rows.loc["baseline", "non_embedding_params"])
    assert rows.loc["baseline", "params_ratio"] == pytest.approx(16 / 22)
    assert rows.loc["kd", "non_embedding_ratio"] == pytest.approx(0.4)
    assert "| 1.50× | – | 16k (73) |" in (tmp_path / "report.md").read_text()


def test_without_a_teacher_there_is_nothing_to_compare_with(text_run: MakeRun, tmp_path: Path) -> None:
    text_run("baseline", 0, 0.7)
    row = write_report([tmp_path], tmp_path, "Texts").table.iloc[0]
    assert row.non_embedding_params == 4_000
    assert row[["non_embedding_ratio", "params_ratio", "speed_up"]].isna().all()
    text = (tmp_path / "report.md").read_text()
    assert "| score % | non-embedding params (% of teacher) | params (% of teacher) |" in text
    assert "| **70.00** | **4k** | **16k** |" in text


@pytest.mark.parametrize("case", ["numbers", "vectors", "other rows"])
def test_what_is_not_a_class_agrees_with_nothing(text_run: MakeRun, tmp_path: Path, case: str) -> None:
    student, teacher = {
        "numbers": ([0.5, 2.0], [0.5, 2.0]),
        "vectors": ([[0.0, 1.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]),
        "other rows": ([1, 2], [[1, 0], [2, 0]]),
    }[case]
    text_run("kd", 0, 0.7, predictions={"index": [0, 1], "student": student, "main": teacher})
    text_run("baseline", 0, 0.7, predictions={"index": [0, 1], "student": student})
    assert [run.agreement for run in collect([tmp_path])] == [None, None]
    write_report([tmp_path], tmp_path, "Texts")
    assert pd.read_csv(tmp_path / "report.csv").agreement.isna().all(), "the teacher's with itself neither"


def test_tokens_agree_as_samples_do(text_run: MakeRun, tmp_path: Path) -> None:
    index = [0, 0, 0, 1]  # three tokens of the first text, one of the second
    text_run("kd", 0, 0.7, predictions={"index": index, "student": [5, 6, 7, 8], "main": [5, 6, 7, 0]})
    assert [run.agreement for run in collect([tmp_path])] == [0.75]
    assert "agreement**: share of the test samples (tokens, where these are predicted) for" in definitions(tmp_path)


def test_images_are_spoken_of_as_before(make_run: MakeRun, tmp_path: Path) -> None:
    same = {"index": [0, 1], "student": [5, 6], "main": [5, 6]}
    make_run("kd", 0, 0.7, data=data(score_name="accuracy"), predictions=same)
    said = definitions(tmp_path)
    assert "- **score**: on the test split at" in said
    assert "agreement**: share of the test samples for which" in said
    assert "speed-up" not in said


def test_a_score_that_is_no_accuracy_is_named(text_run: MakeRun, tmp_path: Path) -> None:
    text_run("kd", 0, 0.7, data=data(score_name="Spearman correlation"))
    assert "- **score**: Spearman correlation, on the test split at" in definitions(tmp_path)


def test_different_scores_are_not_compared(text_run: MakeRun, tmp_path: Path) -> None:
    text_run("kd", 0, 0.7, data=data(score_name="macro F1"))
    text_run("pkd", 0, 0.7, data=data(score_name="accuracy"))
    with pytest.raises(UserError, match=r"different scores: macro F1 in .*kd_seed0, accuracy in .*pkd_seed0"):
        select(collect([tmp_path]))


def test_language_models_have_their_perplexity(text_run: MakeRun, tmp_path: Path) -> None:
    for seed, perplexity in enumerate([20.0, 30.0]):
        last = {"epoch": 9, "test_score": 0.5, "perplexity": perplexity}
        text_run("kd", seed, None, metrics={"last": last}, teacher={**TEACHER, "perplexity": 12.0})
    write_report([tmp_path], tmp_path, "Texts")
    with (tmp_path / "report.csv").open() as file:
        rows = {row["method"]: float(row["perplexity"]) for row in csv.DictReader(file)}
    assert rows == {"teacher": 12, "kd": 25}
    report = (tmp_path / "report.md").read_text()
    assert "| perplexity |" in report
    assert "| **25.00** |" in report
    assert "**perplexity**: exp(mean loss" in report


def test_what_predicts_no_tokens_has_no_perplexity(text_run: MakeRun, tmp_path: Path) -> None:
    text_run("kd", 0, 0.7)
    write_report([tmp_path], tmp_path, "Texts")
    assert "perplexity" not in (tmp_path / "report.md").read_text() + (tmp_path / "report.csv").read_text()
