"""`task.metrics` and `task.monitor` in a whole run: what is logged, recorded, chosen and reported."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score, matthews_corrcoef

from distillery.core.errors import UserError
from distillery.results.record import RunRecord
from distillery.results.report.write import write_report
from distillery.runs.run import Result
from fixtures.runs import Forgets

CHOSEN = ("task.metrics=[macro_f1,mcc]", "task.monitor=val/macro_f1")


@pytest.fixture(scope="module")
def finished(run: Callable[..., Result]) -> Result:
    return run(*CHOSEN, "trainer.max_epochs=4", callbacks=[Forgets(3)])


def test_the_record_has_what_scikit_learn_finds_in_the_predictions(finished: Result) -> None:
    record = RunRecord.read(finished.folder)
    assert record.data["metrics"] == {
        "macro_f1": {"higher_is_better": True, "range": [0.0, 1.0]},
        "mcc": {"higher_is_better": True, "range": [-1.0, 1.0]},
    }
    with np.load(finished.folder / "predictions.npz") as saved:
        for name, entry, prefix in (
            ("student", record.metrics["last"], "test_"),
            ("main", record.teachers["main"], ""),
        ):
            target, predicted = saved["target"], saved[name]
            assert entry[f"{prefix}macro_f1"] == pytest.approx(f1_score(target, predicted, average="macro"), abs=1e-6)
            assert entry[f"{prefix}mcc"] == pytest.approx(matthews_corrcoef(target, predicted), abs=1e-6)


def test_the_best_checkpoint_is_that_of_the_monitor(finished: Result) -> None:
    logged = pd.read_csv(finished.folder / "metrics" / "version_0" / "metrics.csv")
    record, values = finished.record, logged["val/macro_f1"].dropna().tolist()
    assert len(values) == 4
    best = record.metrics["best"]
    assert best["epoch"] == 1 + int(np.argmax(values)) != 4
    assert best["val_macro_f1"] == pytest.approx(max(values))
    assert record.metrics["last"]["val_macro_f1"] == pytest.approx(values[-1]) == record.val_monitored
    checkpoint = torch.load(finished.folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert [each["monitor"] for each in checkpoint["callbacks"].values() if each.get("monitor")] == ["val/macro_f1"]


def test_the_report_has_their_columns(finished: Result, tmp_path: Path) -> None:
    table = write_report([finished.folder], tmp_path, "Digits").table.set_index("method")
    for name in ("macro_f1", "mcc"):
        assert table.loc["kd", f"{name}_mean"] == pytest.approx(finished.record.metrics["last"][f"test_{name}"])
        assert table.loc["teacher", f"{name}_mean"] == pytest.approx(finished.record.teachers["main"][name])
        assert {f"{name}_std", f"{name}_diff_mean", f"{name}_diff_ci95"} < {*table}
    page = (tmp_path / "report.md").read_text()
    assert "| score % | retention % | macro_f1 | mcc |" in page
    assert "- **macro_f1, mcc**:" in page


def test_what_no_task_of_classes_has_is_refused(run: Callable[..., Result]) -> None:
    with pytest.raises(UserError, match=r"^task\.metrics=macrof1: there is no such metric\. Did you mean 'macro_f1'"):
        run("task.metrics=[macrof1]")
    with pytest.raises(UserError, match=r"^task\.monitor=val/mcc: no validation logs it\. Add it to task\.metrics"):
        run("task.metrics=[macro_f1]", "task.monitor=val/mcc")
    with pytest.raises(UserError, match=r"top10_accuracy: there are 10 classes; k must be from 1 to 9"):
        run("task.metrics=[top10_accuracy]")
