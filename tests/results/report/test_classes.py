"""The report on classes: figures against scikit-learn, differences by hand, and what is shown of many classes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import f1_score, precision_score, recall_score

from distillery.results.layout import report_files
from distillery.results.report.classes import ClassFigures, off_diagonal
from distillery.results.report.collect import collect
from distillery.results.report.write import write_report

MakeRun = Callable[..., Path]
N = 400


def arrays(classes: int, seed: int, **right: float) -> dict[str, np.ndarray]:
    """Predictions that are right with these probabilities, by network."""
    draw = np.random.default_rng(seed)
    target = draw.integers(classes, size=N)
    found = {"index": np.arange(N), "target": target}
    for name, share in right.items():
        found[name] = np.where(draw.random(N) < share, target, draw.integers(classes, size=N))
    return found


@pytest.fixture
def made(make_run: MakeRun) -> Callable[..., dict[str, dict[str, np.ndarray]]]:
    def make(classes: int, kind: str = "class") -> dict[str, dict[str, np.ndarray]]:
        found = {}
        for seed in (0, 1):
            for method, share in (("baseline", 0.5), ("kd", 0.7)):
                own = {"student": share} | ({} if method == "baseline" else {"main": 0.9})
                predictions = arrays(classes, seed, **own)
                names = [f"class {number}" for number in range(classes)]
                folder = make_run(method, seed, share, predictions=predictions)
                record = json.loads((folder / "run.json").read_text())
                record["data"] |= {"classes": names, "prediction": kind}
                (folder / "run.json").write_text(json.dumps(record))
                found[folder.name] = predictions
        return found

    return make


def figures(folder: Path) -> pd.DataFrame:
    return ClassFigures(collect([folder])).table.set_index(["method", "class"])


def test_figures_are_those_of_scikit_learn_over_seeds(made: Any, tmp_path: Path) -> None:
    saved, table = made(5), figures(tmp_path)
    assert [*table.index.unique(0)] == ["teacher", "baseline", "kd"]
    for column, figure in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        of_seeds = [
            [figure(each["target"], each[name], average=None) for key, each in saved.items() if key.startswith(method)]
            for method, name in (("kd", "main"), ("baseline", "student"), ("kd", "student"))
        ]
        for method, values in zip(("teacher", "baseline", "kd"), of_seeds, strict=True):
            np.testing.assert_allclose(table.loc[method, column], np.mean(values, 0), err_msg=f"{method} {column}")
    counts = np.mean([np.bincount(saved[f"kd_seed{seed}"]["target"]) for seed in (0, 1)], 0)
    np.testing.assert_allclose(table.loc["kd", "support"], counts)


def test_differences_are_paired_by_seed(made: Any, tmp_path: Path) -> None:
    saved, table = made(5), figures(tmp_path)

    def f1(name: str, network: str) -> np.ndarray:
        return np.asarray(f1_score(saved[name]["target"], saved[name][network], average=None))

    gains = [f1(f"kd_seed{seed}", "student") - f1(f"baseline_seed{seed}", "student") for seed in (0, 1)]
    losses = [f1(f"kd_seed{seed}", "student") - f1(f"kd_seed{seed}", "main") for seed in (0, 1)]
    np.testing.assert_allclose(table.loc["kd", "diff_baseline"], np.mean(gains, 0))
    np.testing.assert_allclose(table.loc["kd", "diff_teacher"], np.mean(losses, 0))
    assert table.loc["baseline", "diff_baseline"].isna().all()


def test_confusions_are_counted_over_all_seeds(made: Any, tmp_path: Path) -> None:
    saved = made(3)
    counts = ClassFigures(collect([tmp_path])).confusions["kd"]
    expected = np.zeros((3, 3))
    for seed in (0, 1):
        each = saved[f"kd_seed{seed}"]
        np.add.at(expected, (each["target"], each["student"]), 1)
    assert (counts == expected).all()
    shares = off_diagonal(counts)
    assert shares[0, 1] == pytest.approx(expected[0, 1] / expected[0].sum())
    assert not shares.diagonal().any()


def test_the_report_shows_them(made: Any, tmp_path: Path) -> None:
    made(5)
    write_report([tmp_path], tmp_path / "out", "Report")
    page = (tmp_path / "out" / "report.md").read_text()
    assert "## Classes\n\nOf `kd`, the method in bold." in page
    assert "| class | support | precision % | recall % | F1 % | Δ baseline | Δ teacher |" in page
    assert page.count("| class ") == 1 + 5
    assert "Most often confused: class " in page
    assert {"classes.csv", "confusion.png"} < {*report_files(tmp_path / "out")}
    written = pd.read_csv(tmp_path / "out" / "classes.csv")
    assert len(written) == 3 * 5
    row = figures(tmp_path).loc[("kd", "class 0")]
    assert f"| class 0 | {row['support']:g} | {100 * row['precision']:.1f} | {100 * row['recall']:.1f} |" in page
    assert Image.open(tmp_path / "out" / "confusion.png").width > 800


def test_of_a_hundred_classes_the_extremes_are_shown(made: Any, tmp_path: Path) -> None:
    made(100)
    write_report([tmp_path], tmp_path / "out", "Report")
    page = (tmp_path / "out" / "report.md").read_text()
    assert "Of its 100 classes the 20 with the lowest and the highest Δ baseline are shown." in page
    shown = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| class ")][1:]
    gains = figures(tmp_path).loc["kd", "diff_baseline"].dropna().sort_values(kind="stable")
    assert [*map(gains.get, shown)] == [*gains.head(10), *gains.tail(10)]
    with Image.open(tmp_path / "out" / "confusion.png") as picture:
        assert picture.height < 1500


def test_labels_have_figures_and_no_confusions(make_run: MakeRun, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    target = (draw.random((50, 3)) < 0.4).astype(np.float32)
    folder = make_run("kd", 0, 0.5)
    predicted = (draw.random((50, 3)) < 0.5).astype(np.int64)
    np.savez(folder / "predictions.npz", index=np.arange(50), target=target, student=predicted)
    record = json.loads((folder / "run.json").read_text())
    record["data"] |= {"classes": ["a", "b", "c"], "prediction": "labels"}
    (folder / "run.json").write_text(json.dumps(record))
    write_report([tmp_path], tmp_path / "out", "Report")
    np.testing.assert_allclose(figures(tmp_path).loc["kd", "f1"], f1_score(target, predicted, average=None))
    assert not (tmp_path / "out" / "confusion.png").exists()
    assert "| a | " in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize("kind", ["number", "token", None])
def test_other_predictions_have_no_such_section(kind: Any, made: Any, tmp_path: Path) -> None:
    made(3, kind)
    write_report([tmp_path], tmp_path / "out", "Report")
    assert "## Classes" not in (tmp_path / "out" / "report.md").read_text()
    assert not {"classes.csv", "confusion.png"} & {*report_files(tmp_path / "out")}
