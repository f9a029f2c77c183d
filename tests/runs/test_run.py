"""Whole runs: what they leave behind, that they repeat, and that one leaves no trace in the next."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.metrics import log_loss
from torch import nn

from distillery.core.errors import UserError
from distillery.core.paths import CONFIGS
from distillery.models.weights import load_weights, weights_hash
from distillery.results.layout import RECORD
from distillery.results.record import RunRecord
from distillery.runs import progress_lines
from distillery.runs.checkpoints import last_checkpoint
from distillery.runs.folder_lock import FolderLock
from distillery.runs.run import Result, arithmetic, train
from distillery.runs.run_folder import RunFolder
from fixtures.runs import (
    STEPS,
    STUDENT,
    Died,
    Dies,
    Forgets,
    config,
    contents,
    metrics,
    sha256,
    train_student,
    train_teacher,
)

DEBUG = ("default", "fdr", "limit", "overfit", "profiler")
EVERY_FAMILY = ("loss/feature=[hint]", "loss/attention=[attention_transfer]", "loss/relation=[rkd]")
EXPORTS = ("student.safetensors", "predictions.npz")


@pytest.fixture(scope="module")
def finished(run: Callable[..., Result]) -> Result:
    return run()


def test_threads_and_tf32_are_those_of_the_config_and_as_before_afterwards() -> None:
    def held() -> tuple[int, str, bool]:
        precision = torch.get_float32_matmul_precision()
        return torch.get_num_threads(), precision, torch.backends.cudnn.allow_tf32

    before = held()
    for given, expected in (
        ({"threads": 3, "tf32": True}, (3, "high", True)),
        ({"threads": 1, "tf32": False}, (1, "highest", False)),
    ):
        with arithmetic(OmegaConf.create({"trainer": {"devices": 1}, **given})):
            assert held() == expected
        assert held() == before


@pytest.mark.parametrize("optimizer", ["torch.optim.AdamW", "timm.optim.Lion"])
def test_an_optimizer_s_own_list_is_saved_and_read(optimizer: str, run: Callable[..., Result]) -> None:
    """Checkpoints are read with weights_only=True, which refuses the lists of configs."""
    result = run(f"optim.optimizer._target_={optimizer}", "+optim.optimizer.betas=[0.9,0.98]", "trainer.max_epochs=1")
    path = last_checkpoint(result.folder)
    assert path is not None
    saved = torch.load(path, weights_only=True)
    assert tuple(saved["optimizer_states"][0]["param_groups"][0]["betas"]) == (0.9, 0.98)


def test_the_folder_is_complete(finished: Result) -> None:
    found = {path.relative_to(finished.folder).as_posix() for path in finished.folder.rglob("*") if path.is_file()}
    assert found == {
        "config.yaml",
        "run.json",
        "student.safetensors",
        "predictions.npz",
        "checkpoints/last.ckpt",
        "checkpoints/last.before.ckpt",
        "checkpoints/best.ckpt",
        "metrics/version_0/metrics.csv",
        "metrics/version_0/hparams.yaml",
    }


def test_the_record_tells_of_the_run(finished: Result, teacher: Path) -> None:
    record = RunRecord.read(finished.folder)
    assert (record.status, record.error) == ("finished", None)
    assert (record.name, record.method, record.seed) == ("digits_demo", "kd", 0)
    assert set(STUDENT) < set(record.overrides)
    assert record.data == {
        "name": "digits",
        "fingerprint": finished.parts.data.fingerprint,
        "num_classes": 10,
        "classes": [str(digit) for digit in range(10)],
        "prediction": "class",
        "score_name": "accuracy",
        "higher_is_better": True,
        "score_range": [0.0, 1.0],
        "metrics": {},
        "monitor": "val/score",
        "measured": "",
        "remarks": [],
        "train": 100,
        "labelled": 100,
        "unlabelled": 0,
        "val": 200,
        "test": 797,
    }
    theirs = RunRecord.read(teacher)
    assert record.teachers["main"]["sha256"] == theirs.student_sha256
    assert record.teachers["main"]["score"] == theirs.metrics["last"]["test_score"] > 0.5
    assert record.teachers["main"]["source"] == str(teacher)
    assert record.metrics["last"]["epoch"] == 3
    assert record.cost["params"] == 5178
    assert record.cost["latency_ms"] >= record.cost["latency"]["minimum_ms"] > 0
    assert record.cost["latency"]["input"] == [1, 8, 8]
    assert record.seconds is not None
    assert record.fit_seconds is not None
    assert 0 < record.fit_seconds < record.seconds
    assert record.environment["packages"]["torch"] == torch.__version__.split("+")[0]


def test_the_record_is_strict_json(finished: Result) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    content = json.loads((finished.folder / RECORD).read_text(), parse_constant=refuse)
    assert content["version"] == 1


def test_the_config_is_resolved_and_known_by_its_hash(finished: Result) -> None:
    text = (finished.folder / "config.yaml").read_text()
    assert "${" not in text
    assert "???" not in text
    saved = OmegaConf.load(finished.folder / "config.yaml")
    assert saved.student.net.num_classes == 10  # a place that was open
    assert saved.optim.scheduler.T_max == 3


def test_the_predictions_give_the_scores(finished: Result) -> None:
    with np.load(finished.folder / "predictions.npz") as saved:
        arrays = dict(saved)
    probabilities = {name: arrays.pop(f"{name}_probabilities") for name in ("student", "main")}
    assert set(arrays) == {"index", "target", "student", "main"}
    assert all(array.shape == (797,) and array.dtype == np.int64 for array in arrays.values())
    for name, each in probabilities.items():
        assert (each.shape, each.dtype) == ((797, 10), np.float32)
        assert each.sum(1) == pytest.approx(np.ones(797), abs=1e-5)
        assert (each.argmax(1) == arrays[name]).all()
    assert len(set(arrays["index"])) == 797
    record = finished.record
    assert np.mean(arrays["student"] == arrays["target"]) == pytest.approx(record.metrics["last"]["test_score"])
    assert np.mean(arrays["main"] == arrays["target"]) == pytest.approx(record.teachers["main"]["score"])
    loss = log_loss(arrays["target"], probabilities["student"])
    assert loss == pytest.approx(record.metrics["last"]["test_loss"], rel=1e-4)


def test_best_is_the_checkpoint_that_scored_best_on_validation(run: Callable[..., Result]) -> None:
    result = run("trainer.max_epochs=5", callbacks=[Forgets(4)])
    record, logged = result.record, pd.read_csv(result.folder / "metrics" / "version_0" / "metrics.csv")
    scores = logged["val/score"].dropna().tolist()
    best = record.metrics["best"]
    assert len(scores) == 5
    assert max(scores) > 0.2
    assert best["val_score"] == pytest.approx(max(scores))
    assert best["epoch"] == 1 + int(np.argmax(scores))
    assert record.metrics["last"]["val_score"] == pytest.approx(scores[-1])
    assert best["epoch"] != 5
    last = weights_hash(result.parts.distiller.student.net)
    assert last == record.student_sha256, "scoring the best one put the last one's weights back"


def test_a_baseline_has_no_teacher_and_no_term(run: Callable[..., Result]) -> None:
    record = run("model/teacher=none", *EVERY_FAMILY).record
    assert (record.method, record.teachers) == ("baseline", {})


def test_a_run_of_the_same_seed_repeats_bit_for_bit(run: Callable[..., Result]) -> None:
    first, second = run(*EVERY_FAMILY), run(*EVERY_FAMILY)
    assert first.folder != second.folder
    for file in EXPORTS:
        assert sha256(first.folder / file) == sha256(second.folder / file), file
    assert metrics(first.folder) == metrics(second.folder)
    assert first.record.metrics == second.record.metrics
    assert first.record.config_hash == second.record.config_hash


def test_another_seed_is_another_run(run: Callable[..., Result], finished: Result) -> None:
    other = run("seed=1")
    assert other.record.student_sha256 != finished.record.student_sha256
    assert other.record.config_hash != finished.record.config_hash
    assert other.record.data["fingerprint"] != finished.record.data["fingerprint"]


def test_methods_of_a_seed_start_from_the_same_student(run: Callable[..., Result]) -> None:
    """Also where a loss draws weights of its own, for a projector."""
    still = ("optim.optimizer.lr=0", "trainer.max_epochs=1")
    hashes = set()
    for method in ([], ["loss/feature=[hint]"], ["model/teacher=none"]):
        net = run(*still, *method).parts.distiller.student.net
        hashes.add(tuple(parameter.detach().numpy().tobytes() for parameter in net.parameters()))
    assert len(hashes) == 1


def test_settings_that_change_nothing_leave_the_weights_alone(run: Callable[..., Result], finished: Result) -> None:
    """Validating, logging and guarding must not touch the order, the augmentation or the student."""
    other = run(
        "trainer.check_val_every_n_epoch=3",
        "trainer.log_every_n_steps=50",
        "callbacks.teacher_guard=null",
        "callbacks.checkpoint_best=null",
        "data.eval_batch_size=64",
        "logger=none",
    )
    assert other.record.student_sha256 == finished.record.student_sha256


@pytest.mark.slow
def test_a_run_does_not_depend_on_the_one_before(run: Callable[..., Result], teacher: Path, tmp_path: Path) -> None:
    run(*EVERY_FAMILY, "seed=5", "debug=overfit", "trainer.max_epochs=2")
    second = run("loss/response=[dkd]", "seed=1")
    alone = tmp_path / "alone"
    overrides = [*second.record.overrides, f"paths.run='{alone}'", f"hydra.run.dir='{alone}'"]
    command = [sys.executable, "-m", "distillery.commands.train", *overrides, "trainer.enable_progress_bar=false"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for file in EXPORTS:
        assert sha256(alone / file) == sha256(second.folder / file), file
    assert metrics(alone) == metrics(second.folder)


def test_a_run_that_breaks_off_is_recorded_as_failed(run: Callable[..., Result], teacher: Path) -> None:
    folders: list[Path] = []

    class Noted(Dies):
        def on_fit_start(self, trainer: Any, module: Any) -> None:
            folders.append(Path(trainer.default_root_dir))
            assert RunRecord.read(folders[0]).status == "running"

    with pytest.raises(Died):
        run(callbacks=[Noted(after=15)])
    record = RunRecord.read(folders[0])
    assert (record.status, record.error) == ("failed", "Died: after step 15")
    assert record.metrics == {}
    assert not (folders[0] / "student.safetensors").exists()
    assert (folders[0] / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss/feature=[hint]", "loss.hint.layers={stage.0: stages.0}"], r"student network has no layer 'stage\.0'"),
        (["loss/feature=[hint]", "loss.hint.layers={stages.0: block1}"], r"network has no layer 'block1'"),
        (["loss/feature=[hint]", "loss.hint.layers={embeding: embedding}"], r"Did you mean 'embedding'"),
        (
            ["loss/attention=[attention_transfer]", "loss.attention_transfer.layers={embedding: embedding}"],
            r"loss\.attention_transfer: .*'embedding'",
        ),
        (["loss.kd.teacher=mian"], r"no teacher 'mian'\. Did you mean 'main'"),
        (["data.train_size=7"], r"data\.train_size=7"),
        (
            ["teachers.main.weights=nowhere"],
            r"teachers\.main\.weights: 'nowhere' is not a run folder.*train the network first",
        ),
        (["model/teacher=cnn", "teachers.main.weights=nowhere/net.pth"], r"folder nowhere does not exist"),
        (["loss/feature=[hint]", "loss.hint.weight=.inf"], r"loss\.hint\.weight=\.inf: it must be a finite number"),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    overrides: list[str], message: str, teacher: Path, tmp_path: Path
) -> None:
    cfg = config(tmp_path / "run", *STUDENT, f"teachers.main.weights='{teacher}'", *overrides)
    with pytest.raises(UserError, match=message):
        train(cfg)
    assert not Path(cfg.paths.run).exists()


def test_a_teacher_of_other_classes(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "foreign.pth")
    (tmp_path / "torn.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    for name, message in (("foreign.pth", "does not fit the SmallCNN"), ("torn.safetensors", "cannot be read")):
        cfg = config(tmp_path / "run", *STUDENT, "model/teacher=cnn", f"teachers.main.weights='{tmp_path / name}'")
        with pytest.raises(UserError, match=message):
            train(cfg)
    other = train_teacher(tmp_path / "twelve", "+student.net.num_classes=10", "data.train_size=50")
    cfg = config(tmp_path / "run", *STUDENT, f"teachers.main.weights='{other}'", "+student.net.num_classes=12")
    with pytest.raises(UserError, match=r"student network gives logits \(8, 12\) where the task has 10 classes"):
        train(cfg)


def test_hardware_that_is_not_there(teacher: Path, tmp_path: Path) -> None:
    cfg = config(tmp_path / "run", *STUDENT, f"teachers.main.weights='{teacher}'", "trainer.accelerator=tpu")
    with pytest.raises(UserError, match=r"`trainer`.*hardware=cpu"):
        train(cfg)
    assert not Path(cfg.paths.run).exists()


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n == "overfit" else []) for n in DEBUG])
def test_debugging(name: str, teacher: Path, tmp_path: Path) -> None:
    own = ["experiment=digits_demo", f"teachers.main.weights='{teacher}'", "min_teacher_score=0", f"debug={name}"]
    result = train(config(tmp_path / "run", *own))
    record = result.record
    assert (record.status, record.name) == ("finished", "debug")
    assert record.metrics["last"]["epoch"] == {"limit": 3, "overfit": 50}.get(name, 1)
    if name == "overfit":
        assert record.data["train"] == 50
        assert result.parts.data.augment is None


def test_there_are_no_other_debug_configs() -> None:
    assert {path.stem for path in (CONFIGS / "debug").glob("*.yaml")} == set(DEBUG)


def test_a_run_that_is_not_finished_teaches_nobody(teacher: Path, tmp_path: Path) -> None:
    copy = tmp_path / "teacher"
    shutil.copytree(teacher, copy)
    replace(RunRecord.read(teacher), status="failed").write(copy)
    with pytest.raises(UserError, match=r"teachers\.main\.weights: the run in '.*teacher' is failed, not finished"):
        train(config(tmp_path / "run", *STUDENT, f"teachers.main.weights='{copy}'"))


@pytest.mark.slow
def test_compiled_networks_keep_their_names(
    run: Callable[..., Result], finished: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []
    as_it_is = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda net: (compiled.append(net), as_it_is(net, backend="eager")))
    result = run("compile=true", "loss/feature=[hint]", "trainer.max_epochs=1")
    distiller = result.parts.distiller
    assert compiled == [distiller.student.net, distiller.teachers["main"].net]
    assert distiller.student.net.state_dict().keys() == finished.parts.distiller.student.net.state_dict().keys()
    checkpoint = torch.load(result.folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert not [key for key in checkpoint["state_dict"] if "_orig_mod" in key]
    load_weights(finished.parts.distiller.student.net, result.folder / "student.safetensors")


@pytest.mark.slow
def test_each_run_of_a_process_is_compiled(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    """With taps, and with another network: torch gives a forward up that has been compiled eight times."""
    as_it_is = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda net: as_it_is(net, backend="eager"))
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for widths in ("[8,12]", "[16,32]"):
            run("compile=true", "loss/feature=[hint]", "trainer.max_epochs=1", f"student.net.widths={widths}")


@pytest.mark.slow
def test_layout_and_folded_batchnorms_change_no_result(run: Callable[..., Result]) -> None:
    """But for rounding; the record is of the teacher as it is."""
    plain, tuned = (
        run("loss/feature=[hint]", "trainer.max_epochs=1", f"method={name}", *more).record
        for name, more in {"plain": (), "tuned": ("channels_last=true", "fold_batchnorms=true")}.items()
    )
    for name, value in plain.metrics["last"].items():
        assert tuned.metrics["last"][name] == pytest.approx(value, rel=1e-2, abs=1e-3), name
    assert "BatchNorms are folded" in " ".join(tuned.remarks)
    for key in ("sha256", "score", "params", "flops"):
        assert tuned.teachers["main"][key] == plain.teachers["main"][key]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_for_real(run: Callable[..., Result]) -> None:
    assert run("compile=true", "trainer.max_epochs=1").record.status == "finished"


class Full(L.Callback):
    """The disk, from the second epoch on."""

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.current_epoch == 1:

            def save(*_: object) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            torch.save = save


def test_a_full_disk_is_told_in_a_sentence(
    run: Callable[..., Result], teacher: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch, "save", torch.save)  # restored afterwards
    folder = tmp_path / "run"
    with pytest.raises(UserError, match=r"run can no longer be written: No space left on device\..*resume="):
        train_student(folder, teacher, callbacks=[Full()])
    record = RunRecord.read(folder)
    assert record.status == "failed"
    assert "No space left on device" in str(record.error)
    assert last_checkpoint(folder) == folder / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize(
    "length", [(), ("trainer.max_epochs=-1", f"trainer.max_steps={3 * STEPS}")], ids=["epochs", "steps"]
)
def test_a_run_without_a_terminal_prints_lines(
    length: tuple[str, ...],
    teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress_lines, "FIRST", 0.0)
    cfg = config(tmp_path / "run", *STUDENT, *length, f"teachers.main.weights='{teacher}'")
    cfg.trainer.enable_progress_bar = True
    train(cfg)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 1, "the next is due in a minute"
    assert re.fullmatch(r"epoch 1/3, step 1(, [\w/]+ -?\d+\.\d{3})*, 0:00:\d\d left", lines[0])


def test_a_folder_that_was_taken_meanwhile_stays_as_it_is(tmp_path: Path, finished: Result) -> None:
    folder, record = tmp_path / "run", replace(finished.record, status="running")
    folder.mkdir()
    with FolderLock(folder):
        finished.record.write(folder)
        before = contents(folder)
        with pytest.raises(UserError, match="run is in use"), RunFolder(folder, record, FolderLock(folder)) as own:
            own.begin(OmegaConf.create({"resume": None}))
        assert contents(folder) == before
