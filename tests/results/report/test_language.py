"""What a report says of language models: fidelity, its picture, and texts side by side."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import pandas as pd
import pytest
from rich.console import Console

from distillery.results.layout import report_files
from distillery.results.report.collect import collect
from distillery.results.report.language import side_by_side
from distillery.results.report.page import markdown_table
from distillery.results.report.plot_fidelity import plot_fidelity
from distillery.results.report.selection import select
from distillery.results.report.terminal import terminal_table
from distillery.results.report.write import write_report

MakeRun = Callable[..., Path]
TEACHER = {"sha256": "t0", "score": 2.1, "params": 9, "flops": 9, "latency_ms": 9.0, "perplexity": 20.0}
DATA = {
    "name": "speeches", "fingerprint": "f", "train": 100, "val": 10, "test": 4, "score_name": "bits per byte",
    "higher_is_better": False, "measured": "windows of 64 tokens, stride 63, prefix token none",
}  # fmt: skip
BINS = {"count": [0, 30, 10], "confidence": [None, 0.1, 0.3], "accuracy": [None, 0.1, 0.2]}


def text(kl: float) -> dict[str, Any]:
    return {"tokens": 64, "agreement": 0.5, "kl": kl, "reverse_kl": kl + 1, "acceptance": 0.6, "kl_by_place": [kl, kl]}


def entries(kl: float) -> dict[str, Any]:
    texts = {"number": 3, "prompt": 16, "new": 48, "places": 8}
    own = {"tokens": 40, "entropy": 4.0 + kl, "calibration_error": 0.0123, "bins": BINS}
    return {
        "student": {**own, "texts": texts},
        "main": {**text(kl), **own, "entropy": 3.0, "own_text": text(2 * kl), "data_text": text(kl)},
    }


@pytest.fixture
def folder(make_run: MakeRun, tmp_path: Path) -> Path:
    for method, score, kl in (("baseline", 2.5, 0.4), ("kd", 2.4, 0.2)):
        for seed in range(2):
            samples = [{"prompt": "We *are*", "data": " x\n\ny", "student": f" {method} `` {seed}"}]
            if method == "kd":
                samples[0]["main"] = " of | teachers"
            fidelity = entries(kl + seed / 10)
            if method == "kd":
                fidelity["other"] = {"not_compared": "it reads the tokens of bert"}
            metrics = {"last": {"epoch": 2, "test_score": score + seed / 50, "perplexity": 30.0}}
            given = {"metrics": metrics, "data": DATA, "fidelity": fidelity, "samples": samples}
            cost = {"params": 7, "embedding_params": 2, "flops": 6, "latency_ms": 1.0}
            make_run(method, seed, score, teacher=TEACHER, cost=cost, **given)
    return tmp_path


def test_the_figures_are_means_over_seeds_and_texts_stand_side_by_side(folder: Path) -> None:
    table = write_report([folder], folder, "Speeches").table
    with (folder / "report.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert [float(rows["kd"][name]) for name in ("kl", "kl_own_text", "reverse_kl_own_text")] == pytest.approx(
        [0.25, 0.5, 1.5]
    )
    assert float(rows["kd"]["entropy"]) == pytest.approx(4.25)
    assert (rows["teacher"]["kl"], rows["teacher"]["entropy"]) == ("", "3.0")
    report = (folder / "report.md").read_text()
    assert "| kd | – | 0.2500 | 0.5000 | 1.5000 | 60.0 | 1.23 | 4.250 |" in report
    assert "Means over 40 tokens of the test split" in report
    assert "at 3 continuations" in report
    assert "up to 48 new tokens" in report
    assert "`other` is not compared with the students, as it reads the tokens of bert." in report
    assert "bits per byte, lower is better, windows of 64 tokens, stride 63, prefix token none, on the test" in report
    assert markdown_table(pd.read_csv(folder / "report.csv")) == markdown_table(table)
    assert "agreement" not in report.split("\n\n")[2], "it stands beside the KL"
    assert "fidelity.png" in report_files(folder)
    assert matplotlib.image.imread(folder / "fidelity.png").shape[1] == 1600
    console = Console(width=80, record=True, file=(folder / "terminal").open("w"))
    console.print(terminal_table(table, "Speeches"))
    shown = console.export_text()
    assert "baseline" in shown
    assert "0.9000" in shown
    block = report.split("## Samples")[1].split("## ")[0]
    assert block.rstrip().endswith(
        "```text\nprompt    We *are*\ndata       x⏎⏎y\nteacher    of | teachers\nbaseline   baseline `` 0\n"
        "kd         kd `` 0\n```"
    )


def test_a_divergence_by_position_reaches_as_far_as_the_texts_of_the_data(make_run: MakeRun, tmp_path: Path) -> None:
    """One token of the student far behind the others would squeeze the picture; seeds may end at other places."""
    for seed, (own, given) in enumerate((([1.0, 5.0, 900.0], [0.5, 0.25]), ([3.0], [1.5, 0.75]))):
        found = entries(0.1)
        found["main"] |= {"own_text": text(0) | {"kl_by_place": own}, "data_text": text(0) | {"kl_by_place": given}}
        metrics = {"last": {"epoch": 2, "test_score": 2.0}}
        make_run("kd", seed, 2.0, teacher=TEACHER, metrics=metrics, data=DATA, fidelity=found)
    figure = plot_fidelity(select(collect([tmp_path])).students)
    assert figure is not None
    lines = [line.get_xydata().tolist() for line in figure.axes[0].lines]
    assert lines == [[[4, 2], [12, 5]], [[4, 1], [12, 0.5]]]


def test_texts_stand_side_by_side_whatever_they_hold() -> None:
    assert side_by_side({"a": "```\x1b[31m<b>\r\n"}).splitlines() == ["````text", "a  ```\\x1b[31m<b>\\r⏎", "````"]
    wrapped = side_by_side({"kd": "word " * 60}).splitlines()[1:-1]
    assert len(wrapped) == 3
    assert all(line.startswith(("kd  ", "    ")) and len(line) <= 104 for line in wrapped)


def test_without_figures_there_is_no_section_and_no_picture(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "fidelity.png").write_text("of an earlier report")
    make_run("kd", 0, 2.4, teacher=TEACHER, data=DATA)
    write_report([tmp_path], tmp_path, "Speeches")
    report = (tmp_path / "report.md").read_text()
    assert "## Fidelity" not in report
    assert "## Samples" not in report
    assert not (tmp_path / "fidelity.png").exists()
