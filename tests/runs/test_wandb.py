"""What W&B is told of a run, read back from what it wrote."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import wandb

from distillery.core.errors import UserError
from distillery.runs.job import resumed
from distillery.runs.run import train
from fixtures.runs import STUDENT, Died, Dies, Forgets, assert_rows_close, csv_rows
from fixtures.wandb_runs import OFFLINE, max_step, md5, media, models, only_run, runs

pytestmark = pytest.mark.usefixtures("wandb_here")
TEACHER = ["experiment=digits_teacher", "trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1"]


@pytest.fixture
def new_process() -> Iterator[None]:
    """W&B reads its variables once a process."""
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def student(teacher: Path) -> list[str]:
    """The overrides of a small student run."""
    return [*STUDENT, "data.batch_size=50", f"teachers.main.weights='{teacher}'"]


@pytest.mark.slow
def test_a_run_shows_its_config_its_losses_and_its_result(student: list[str], compose_train: Any) -> None:
    result = train(compose_train(*student, *OFFLINE, "loss/feature=[hint]", "seed=3", "loss.kd.temperature=2.5"))
    run = only_run(result.folder)
    assert (run.project, run.group, run.job_type, run.name) == (
        "distillery",
        "digits_demo",
        "kd+hint",
        "kd+hint seed=3",
    )
    assert run.tags == ["digits_demo", "kd+hint", "seed=3"]
    assert run.exit_code == 0

    assert run.config["loss"]["kd"]["temperature"] == 2.5
    assert run.config["loss"]["kd"]["_target_"].endswith("KD")
    assert run.config["student"]["net"]["num_classes"] == 10, "a place that was open in the composed config"
    assert run.config["seed"] == 3
    assert run.config["method"] == "kd+hint"
    assert run.config["config_hash"] == result.record.config_hash

    terms = {"train/loss", "train/task", "train/kd", "train/hint"}
    ours = {row["trainer/global_step"]: {key: row[key] for key in terms} for row in run.history if terms & row.keys()}
    assert sorted(ours) == list(range(1, 7)), "100 images in batches of 50, three epochs, a line each step"
    assert_rows_close(ours, csv_rows(result.folder, terms))

    record = json.loads((result.folder / "run.json").read_text())
    last = record["metrics"]["last"]
    assert run.summary["test/score"] == last["test_score"]
    assert run.summary["metrics"] == record["metrics"]
    assert run.summary["teachers"] == record["teachers"]
    assert run.summary["cost"] == record["cost"]
    assert (run.summary["status"], run.summary["error"]) == ("finished", None)
    assert [row["test/score"] for row in run.history if "test/score" in row] == [last["test_score"]]
    assert [row["val/score"] for row in run.history if "val/score" in row][-1] == pytest.approx(last["val_score"])


def test_the_run_is_kept_as_an_artifact(student: list[str], compose_train: Any) -> None:
    result = train(compose_train(*student, *OFFLINE, "loss/feature=[hint]"))
    (artifact,) = models(only_run(result.folder))
    assert artifact.name == f"digits_demo-kd-hint-seed-0-{result.record.config_hash[:8]}"
    kept = {entry.path: entry.digest for entry in artifact.manifest.contents}
    files = ["student.safetensors", "config.yaml", "run.json", "predictions.npz"]
    assert kept == {file: md5(result.folder / file) for file in files}, "as they are when the run is over"


def test_a_run_that_fails_is_a_failed_one(student: list[str], compose_train: Any) -> None:
    with pytest.raises(UserError, match="loss"):
        train(compose_train(*student, *OFFLINE, "optim.optimizer.lr=1e30", run="broken"))
    run = only_run(Path(compose_train(*student, run="broken").paths.run))
    assert run.exit_code == 1
    assert run.summary["status"] == "failed"
    assert "loss" in run.summary["error"]
    assert not models(run)
    assert wandb.run is None


def test_two_jobs_of_one_process_share_nothing(student: list[str], compose_train: Any) -> None:
    first = only_run(train(compose_train(*student, *OFFLINE, "loss/feature=[hint]", run="a")).folder)
    second = only_run(train(compose_train(*student, *OFFLINE, "seed=1", run="b")).folder)
    assert "WANDB_MODE" not in os.environ, "Lightning's own `offline` would leave WANDB_MODE behind"
    assert first.id != second.id
    assert (first.name, second.name) == ("kd+hint seed=0", "kd seed=1")
    assert "hint" in first.config["loss"]
    assert "hint" not in second.config["loss"]
    assert not any("train/hint" in row for row in second.history)
    assert len(models(first)) == len(models(second)) == 1


def test_a_job_after_a_failed_one_is_its_own(student: list[str], compose_train: Any) -> None:
    with pytest.raises(Died):
        train(compose_train(*student, *OFFLINE, run="a"), callbacks=[Dies(4)])
    second = only_run(train(compose_train(*student, *OFFLINE, run="b")).folder)
    assert second.exit_code == 0
    assert second.summary["status"] == "finished"


def test_a_resumed_run_keeps_its_id(student: list[str], compose_train: Any) -> None:
    cfg = compose_train(*student, *OFFLINE)
    folder = Path(cfg.paths.run)
    with pytest.raises(Died):
        train(cfg, callbacks=[Dies(4)])
    train(resumed(folder, []))
    before, after = sorted(runs(folder), key=lambda run: -run.exit_code)
    assert before.id == after.id
    assert (before.exit_code, after.exit_code) == (1, 0)
    assert (before.group, before.name) == (after.group, after.name)
    assert [max_step(run) for run in (before, after)] == [4, 6]
    assert min(row["trainer/global_step"] for row in after.history if "train/loss" in row) == 5, "it went on"
    assert not models(before)
    assert len(models(after)) == 1


def test_a_new_run_in_an_old_folder_has_a_new_id(student: list[str], compose_train: Any) -> None:
    train(compose_train(*student, *OFFLINE))
    folder = train(compose_train(*student, *OFFLINE, "seed=1", "replace=true")).folder
    assert len({run.id for run in runs(folder)}) == 2


@pytest.mark.usefixtures("new_process")
def test_wandbs_own_variables_hold(student: list[str], compose_train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    run = only_run(train(compose_train(*student, "logger=wandb")).folder)
    assert run.project == "mine"


@pytest.mark.usefixtures("new_process")
def test_disabled_by_wandbs_own_variable(
    student: list[str], compose_train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    result = train(compose_train(*student, "logger=wandb"))
    assert result.record.status == "finished"
    assert not list(runs(result.folder))


def test_a_look_at_one_batch_opens_no_run(compose_train: Any) -> None:
    folder = train(compose_train(*TEACHER, *OFFLINE, "debug=fdr")).folder
    assert not list(runs(folder))


def test_without_an_account_the_way_out_is_said(compose_train: Any) -> None:
    with pytest.raises(UserError, match=r"(?s)API key.*logger\.wandb\.offline=true.*wandb login"):
        train(compose_train(*TEACHER, "logger=wandb"))


def test_students_of_separate_runs_have_artifacts_of_their_own(student: list[str], compose_train: Any) -> None:
    narrow, wide = (
        only_run(train(compose_train(*student, *OFFLINE, f"student.net.widths={widths}", run=name)).folder)
        for name, widths in {"narrow": [8, 16], "wide": [16, 32]}.items()
    )
    assert narrow.name == wide.name
    assert models(narrow)[0].name != models(wide)[0].name


class Exaggerates(L.Callback):
    """In all validations but the last: the classes are the same, and the loss is large."""

    def on_validation_start(self, trainer: L.Trainer, module: Any) -> None:
        self._scale(trainer, module, 100)

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        self._scale(trainer, module, 1 / 100)

    def _scale(self, trainer: L.Trainer, module: Any, factor: float) -> None:
        if trainer.current_epoch + 1 != trainer.max_epochs:
            for parameter in [*module.student.net.parameters()][-2:]:
                parameter.data.mul_(factor)


@pytest.mark.parametrize("monitor", ["score", "loss"])
def test_the_summary_has_the_epoch_of_the_best_checkpoint(monitor: str, student: list[str], compose_train: Any) -> None:
    """The last student has the worst score and the best loss."""
    given = [*student, *OFFLINE, f"task.monitor=val/{monitor}"]
    result = train(compose_train(*given), callbacks=[Exaggerates(), Forgets(2)])
    logged = csv_rows(result.folder, {"val/score", "val/loss"})
    scores, losses = ([row[f"val/{name}"] for row in logged.values()] for name in ("score", "loss"))
    best = {"score": int(np.argmax(scores)), "loss": int(np.argmin(losses))}
    assert best["score"] < best["loss"] == 2
    summary = only_run(result.folder).summary
    kept = torch.load(result.folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert summary["best/epoch"] == 1 + best[monitor] == 1 + kept["epoch"]
    assert summary["best/val_score"] == pytest.approx(scores[best[monitor]])
    assert summary["val/score"] == {"max": pytest.approx(max(scores)), "last": pytest.approx(scores[-1])}


def test_of_a_run_that_is_not_validated_until_its_end_it_has_the_score(student: list[str], compose_train: Any) -> None:
    seldom = ["trainer.check_val_every_n_epoch=50", "trainer.max_epochs=1"]
    result = train(compose_train(*student, *OFFLINE, *seldom, "callbacks.checkpoint_best=null"))
    last, summary = result.record.metrics["last"], only_run(result.folder).summary
    assert "best" not in result.record.metrics
    assert summary["val/score"]["last"] == pytest.approx(last["val_score"])
    assert summary["best/val_score"] == last["val_score"]
    assert (summary["best/val_loss"], summary["best/epoch"]) == (last["val_loss"], 1)


def test_what_is_predicted_is_a_table(student: list[str], compose_train: Any) -> None:
    result = train(compose_train(*student, *OFFLINE))
    run = only_run(result.folder)
    (shown,) = (row for row in run.history if "predictions._type" in row)
    table = json.loads((media(run) / shown["predictions.path"]).read_text())
    with np.load(result.folder / "predictions.npz") as saved:
        arrays = {name: saved[name] for name in saved if not name.endswith("_probabilities")}
    assert table["columns"] == ["index", "target", "student", "main"] == [*arrays]
    assert len(table["data"]) == 200 < len(arrays["index"])
    rows = list(zip(*(array.tolist() for array in arrays.values()), strict=True))
    assert [tuple(row) for row in table["data"]] == [row for row in rows if [*row] in table["data"]]
    assert (tuple(table["data"][0]), tuple(table["data"][-1])) == (rows[0], rows[-1])
