"""The table of a sweep: rows are named by what was chosen, and the best one is chosen on the validation split."""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from distillery.results.report.formats import best_method, chosen
from distillery.results.report.page import markdown_table
from distillery.results.report.terminal import terminal_table
from distillery.results.report.write import write_report

MakeRun = Callable[..., Path]
CNN = {"student": {"net": {"_target_": "SmallCNN", "widths": [16, 32]}}}
CIFAR = {"student": {"net": {"_target_": "create", "name": "resnet20"}}}
SGD, ADAMW = {"optim": {"momentum": 0.9, "decay": 5e-4}}, {"optim": {"fused": True, "decay": 0.05}}


@pytest.fixture
def job(make_run: MakeRun, tmp_path: Path) -> Callable[..., Path]:
    """job(method, seed, validation score, test score, config, *overrides) is a finished job of a sweep."""
    (tmp_path / "multirun.yaml").touch()
    count = 0

    def make(
        method: str, seed: int, val: float | None, test: float, config: Mapping[str, Any], *overrides: str
    ) -> Path:
        nonlocal count
        last = {"epoch": 1, "val_score": val, "test_score": test}
        given = [*overrides, f"seed={seed}", "logger=none"]
        folder = make_run(method, seed, None, folder=f"{count}", metrics={"last": last}, overrides=given)
        (folder / "config.yaml").write_text(json.dumps({"seed": seed, "loss": {"kd": {"weight": 1}}} | config))
        count += 1
        return folder

    return make


def rows(folder: Path) -> pd.DataFrame:
    return write_report([folder], folder, "Sweep").table.set_index("method").drop(index="teacher", errors="ignore")


def kd(temperature: float) -> dict[str, Any]:
    return {"loss": {"kd": {"weight": 1, "temperature": temperature}}}


def test_the_best_one_is_chosen_on_validation_and_not_on_test(job: Callable[..., Path], tmp_path: Path) -> None:
    for seed, spread in enumerate((-0.01, 0.01)):
        job("kd", seed, 0.7 + spread, 0.9, kd(1.0))
        job("kd", seed, 0.8 + spread, 0.6, kd(4.0))
    table = write_report([tmp_path], tmp_path, "Sweep").table
    assert best_method(table) == "kd temperature=4"
    assert chosen(table) == "Best on the validation split: kd temperature=4."
    found = table.set_index("method").loc["kd temperature=4"]
    assert (found["n_seeds"], found["validation_mean"]) == (2, pytest.approx(0.8))
    assert found["validation_std"] == pytest.approx(0.01 * 2**0.5)
    assert "| **kd temperature=4** | **2** | **80.00 ± 1.41** | **60.00 ± 0.00** |" in markdown_table(table)
    page = (tmp_path / "report.md").read_text()
    assert "Best on the validation split: kd temperature=4." in page
    assert "- **validation**:" in page


def test_without_a_validation_split_none_is_the_best(job: Callable[..., Path], tmp_path: Path) -> None:
    job("kd", 0, None, 0.9, kd(1.0))
    job("kd", 0, None, 0.6, kd(4.0))
    table = write_report([tmp_path], tmp_path, "Sweep").table
    assert best_method(table) is None
    assert "**kd" not in markdown_table(table)
    assert chosen(table) == "There is no validation split, by which a setting could be chosen."


def test_of_a_score_of_which_lower_is_better_the_lowest_is(job: Callable[..., Path], tmp_path: Path) -> None:
    for temperature, score in ((1.0, 2.5), (4.0, 2.25)):
        folder = job("kd", 0, score, score, kd(temperature))
        record = json.loads((folder / "run.json").read_text())
        record["data"] |= {"score_name": "bits per byte", "higher_is_better": False}
        (folder / "run.json").write_text(json.dumps(record))
    table = write_report([tmp_path], tmp_path, "Sweep").table
    assert best_method(table) == "kd temperature=4"
    assert "| **kd temperature=4** | **1** | **2.2500** |" in markdown_table(table)


def test_a_setting_may_be_chosen_by_another_metric(job: Callable[..., Path], tmp_path: Path) -> None:
    """The best one has the worse score, and of `mse` the lowest value is the best."""
    for name, higher, values in (("macro_f1", True, (0.25, 0.5)), ("mse", False, (0.5, 0.25))):
        out = tmp_path / name
        for temperature, score, value in ((1.0, 0.9, values[0]), (4.0, 0.6, values[1])):
            folder = job("kd", 0, score, score, kd(temperature))
            record = json.loads((folder / "run.json").read_text())
            metrics = {name: {"higher_is_better": higher, "range": [0.0, 1.0]}}
            record["data"] |= {"metrics": metrics, "monitor": f"val/{name}"}
            record["metrics"]["last"] |= {f"val_{name}": value, f"test_{name}": 1 - value}
            (folder / "run.json").write_text(json.dumps(record))
            folder.rename(out.parent / f"{name}{temperature}")
        table = write_report([*tmp_path.glob(f"{name}*.0")], out, "Sweep").table
        again = pd.read_csv(out / "report.csv")
        for each in (table, again):
            assert best_method(each) == "kd temperature=4"
            assert chosen(each) == f"Best on the validation split by {name}: kd temperature=4."
            assert f"| method | seeds | validation {name} | score % | retention % | {name} |" in markdown_table(each)
            assert "| **kd temperature=4** | **1** | **" + f"{values[1]:.4f}** | **60.00** |" in markdown_table(each)
        assert again.set_index("method")["best"].to_dict()["kd temperature=1"] == False  # noqa: E712


def test_a_choice_stands_for_all_that_follows_from_it(job: Callable[..., Path], tmp_path: Path) -> None:
    """Each setting of a network, and of an optimizer, was named in the row."""
    for student, of_student in (("cnn", CNN), ("cifar", CIFAR)):
        for optim, of_optim in (("sgd", SGD), ("adamw", ADAMW)):
            job("kd", 0, 0.5, 0.5, {**of_student, **of_optim}, f"model/student={student}", f"optim={optim}")
    assert [*rows(tmp_path).index] == [
        "kd student=cnn, optim=sgd",
        "kd student=cnn, optim=adamw",
        "kd student=cifar, optim=sgd",
        "kd student=cifar, optim=adamw",
    ]


def test_what_does_not_follow_from_a_choice_is_named_beside_it(job: Callable[..., Path], tmp_path: Path) -> None:
    for student, of_student in (("cnn", CNN), ("cifar", CIFAR)):
        for temperature in (1.0, 2.5):
            job("kd", 0, 0.5, 0.5, {**of_student, **kd(temperature)}, f"model/student={student}")
    assert [*rows(tmp_path).index] == [f"kd student={s}, temperature={t}" for s in ("cnn", "cifar") for t in (1, 2.5)]


def test_where_one_run_has_no_such_choice_its_settings_are_named(job: Callable[..., Path], tmp_path: Path) -> None:
    job("kd", 0, 0.5, 0.5, {"optim": {"decay": 0.05}})
    job("kd", 0, 0.5, 0.5, {"optim": {"decay": 5e-4}}, "optim=sgd")
    assert [*rows(tmp_path).index] == ["kd decay=0.05", "kd decay=0.0005"]


def test_settings_are_in_the_order_of_the_sweep(job: Callable[..., Path], tmp_path: Path) -> None:
    """A search has them so in its trials; the config has them in another order."""
    for temperature, lr in ((1.0, 0.1), (4.0, 0.2)):
        given = [f"optim.lr={lr}", f"loss.kd.temperature={temperature}"]
        job("kd", 0, 0.5, 0.5, {**kd(temperature), "optim": {"lr": lr}, "extra": lr}, *given)
    assert [*rows(tmp_path).index] == [
        "kd lr=0.1, temperature=1, extra=0.1",
        "kd lr=0.2, temperature=4, extra=0.2",
    ]


def test_a_baseline_is_one_whatever_is_swept_of_the_losses(job: Callable[..., Path], tmp_path: Path) -> None:
    for temperature, gain in ((1.0, 0.1), (4.0, 0.2)):
        job("kd", 0, 0.5, 0.5 + gain, kd(temperature))
        job("baseline", 0, 0.5, 0.5, kd(temperature))
    found = rows(tmp_path)
    assert [*found.index] == ["baseline", "kd temperature=1", "kd temperature=4"]
    assert [*found["diff_mean"].dropna()] == pytest.approx([0.1, 0.2])


def test_without_a_baseline_there_is_no_column_of_differences(job: Callable[..., Path], tmp_path: Path) -> None:
    job("kd", 0, 0.7, 0.9, kd(1.0))
    job("kd", 0, 0.8, 0.6, kd(4.0))
    table = write_report([tmp_path], tmp_path, "Sweep").table
    page = (tmp_path / "report.md").read_text()
    assert "| method | seeds | validation % | score % | retention % | params | FLOPs | latency ms |" in page
    for name in ("Δ baseline", "gap recovered", "agreement", "p, Holm"):
        assert name not in page
    console = Console(file=io.StringIO(), width=80)
    console.print(terminal_table(table, "Sweep"))
    assert isinstance(console.file, io.StringIO)
    assert "baseline" not in console.file.getvalue()
    job("baseline", 0, 0.5, 0.5, {})
    assert "| score % | Δ baseline |" in markdown_table(write_report([tmp_path], tmp_path, "Sweep").table)


def test_a_report_on_other_runs_has_no_column_of_validation(
    job: Callable[..., Path], make_run: MakeRun, tmp_path: Path
) -> None:
    job("kd", 0, 0.7, 0.9, kd(1.0))
    job("kd", 0, 0.8, 0.6, kd(4.0))
    (tmp_path / "multirun.yaml").unlink()
    table = write_report([tmp_path], tmp_path, "Runs").table
    assert not [name for name in table.columns if "validation" in name]
    assert best_method(table) == "kd temperature=4", "the best on validation all the same"
