"""Fidelity and calibration of classifiers: in the record of a run, and added to that of a baseline."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import entropy
from sklearn.metrics import log_loss
from torch import nn

from distillery.models.taps.network import Network
from distillery.runs import class_fidelity
from distillery.runs.class_fidelity import head_inputs
from distillery.runs.run import Result
from distillery.runs.show_report import show_report
from distillery.tasks.cka import cka

BASELINE = ("model/teacher=none", "task.weight=1.0")


@pytest.fixture(scope="module")
def finished(run: Callable[..., Result]) -> Result:
    return run("task.label_smoothing=0.1")


def read_by_the_head(network: Network, loader: Any) -> torch.Tensor:
    """The input of the last linear layer for each test sample."""
    found: list[torch.Tensor] = []
    last = [module for module in network.net.modules() if isinstance(module, nn.Linear)][-1]
    hook = last.register_forward_hook(lambda _, inputs, __: found.append(inputs[0]))
    with torch.no_grad():
        network.eval()
        for batch in loader:
            network(batch)
    hook.remove()
    return torch.cat(found)


def test_the_record_compares_the_student_with_its_teacher(finished: Result) -> None:
    record, parts = finished.record, finished.parts
    arrays = np.load(finished.folder / "predictions.npz")
    s, t = (arrays[f"{name}_probabilities"].astype(np.float64) for name in ("student", "main"))
    found = record.fidelity["main"]
    assert found["samples"] == record.data["test"] == len(s)
    assert found["kl"] == pytest.approx(entropy(t, s, axis=1).mean(), rel=1e-4)
    assert found["reverse_kl"] == pytest.approx(entropy(s, t, axis=1).mean(), rel=1e-4)
    assert found["agreement"] == (s.argmax(1) == t.argmax(1)).mean()
    assert record.fidelity["student"]["entropy"] == pytest.approx(entropy(s, axis=1).mean(), rel=1e-4)
    assert sum(record.fidelity["student"]["bins"]["count"]) == len(s)
    ours, theirs = (
        read_by_the_head(network, parts.data.test_dataloader())
        for network in (parts.distiller.student, parts.distiller.teachers["main"])
    )
    assert ours.shape[1] != theirs.shape[1]
    assert found["cka"] == pytest.approx(cka(ours, theirs), abs=1e-4)
    assert 0.1 < found["cka"] < 0.99


def test_calibration_is_recorded_of_last_and_best_and_teacher(finished: Result) -> None:
    record = json.loads((finished.folder / "run.json").read_text())
    arrays = np.load(finished.folder / "predictions.npz")
    for figures, name in ((record["metrics"]["last"], "student"), (record["teachers"]["main"], "main")):
        probabilities = arrays[f"{name}_probabilities"].astype(np.float64)
        nll = log_loss(arrays["target"], probabilities / probabilities.sum(1, keepdims=True))
        assert figures["nll"] == pytest.approx(nll, rel=1e-5)
        assert {"calibration_error", "adaptive_calibration_error", "brier"} <= figures.keys()
    assert record["metrics"]["last"]["nll"] < record["metrics"]["last"]["test_loss"], "that has smoothed labels"
    assert record["metrics"]["best"]["nll"] > 0


def test_features_are_those_of_some_samples_spread_over_the_split(
    finished: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(class_fidelity, "SAMPLES", 10)
    student, data = finished.parts.distiller.student, finished.parts.data
    everything = read_by_the_head(student, data.test_dataloader())
    some = head_inputs(student, data, finished.parts.distiller.task)
    assert some is not None
    places = np.linspace(0, len(everything) - 1, 10).round().astype(int)
    torch.testing.assert_close(some, everything[places], rtol=1e-4, atol=1e-5)


def test_a_baseline_is_compared_when_the_report_is_made(
    finished: Result, run: Callable[..., Result], tmp_path: Path
) -> None:
    baseline = run(*BASELINE, "method=baseline")
    before = json.loads((baseline.folder / "run.json").read_text())
    assert before["fidelity"].keys() == {"student"}
    show_report([finished.folder, baseline.folder], tmp_path, "Two runs")
    after = json.loads((baseline.folder / "run.json").read_text())
    found = after["fidelity"].pop("main")
    assert found.pop("sha256") == finished.record.teachers["main"]["sha256"]
    assert after["fidelity"].pop("student") == before["fidelity"].pop("student")
    assert after == before
    arrays = [np.load(result.folder / "predictions.npz") for result in (baseline, finished)]
    s, t = (one[f"{name}_probabilities"] for one, name in zip(arrays, ("student", "main"), strict=True))
    assert found["kl"] == pytest.approx(entropy(t.astype(np.float64), s.astype(np.float64), axis=1).mean(), rel=1e-4)
    loader = baseline.parts.data.test_dataloader
    ours = read_by_the_head(baseline.parts.distiller.student, loader())
    theirs = read_by_the_head(finished.parts.distiller.teachers["main"], loader())
    assert found["cka"] == pytest.approx(cka(ours, theirs), abs=1e-4)

    table = pd.read_csv(tmp_path / "report.csv").set_index("method")
    assert table.loc["baseline", "kl"] == pytest.approx(found["kl"])
    last = finished.record.metrics["last"]
    for figure in ("calibration_error", "adaptive_calibration_error", "brier", "nll"):
        assert table.loc["kd", figure] == pytest.approx(last[figure])
        assert table.loc["teacher", figure] == pytest.approx(finished.record.teachers["main"][figure])
    assert table.loc["kd", "cka"] == pytest.approx(finished.record.fidelity["main"]["cka"])
