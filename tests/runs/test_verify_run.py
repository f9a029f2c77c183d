"""A run exports the student alone, and its score can be proven from the folder."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from distillery.core.errors import UserError
from distillery.models.weights import save_weights
from distillery.results.layout import RECORD
from distillery.results.record import RunRecord
from distillery.runs.run import Result
from distillery.runs.verify_run import student_of, verify_run
from fixtures.runs import Died, Dies


@pytest.fixture(scope="module")
def finished(run: Callable[..., Result]) -> Result:
    return run(
        "loss/feature=[hint]", "loss.hint.weight=1", "loss/attention=[attention_transfer]", "trainer.max_epochs=6"
    )


@pytest.fixture
def folder(run: Callable[..., Result]) -> Path:
    """A finished run that a test may damage."""
    return run("trainer.max_epochs=1").folder


@pytest.mark.parametrize("name", ["last", "best"])
def test_a_checkpoint_is_plain_and_holds_no_teacher(name: str, finished: Result) -> None:
    checkpoint = torch.load(finished.folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
    student = {f"student.net.{key}" for key in finished.parts.distiller.student.net.state_dict()}
    others = set(checkpoint["state_dict"]) - student
    assert student <= set(checkpoint["state_dict"])
    assert others
    assert all(key.startswith("objective.terms.hint.") for key in others), "projectors, to go on with"
    assert "teacher" not in str(list(checkpoint["state_dict"]))


def test_the_export_is_the_student_and_nothing_else(finished: Result) -> None:
    exported = load_file(finished.folder / "student.safetensors")
    own = finished.parts.distiller.student.net.state_dict()
    assert exported.keys() == own.keys()
    assert all(torch.equal(exported[key], own[key]) for key in own)


@pytest.mark.parametrize("split", ["test", "val"])
def test_the_score_is_proven(split: str, finished: Result, capsys: pytest.CaptureFixture[str]) -> None:
    found = verify_run(finished.folder, split)
    assert found.score == pytest.approx(finished.record.metrics["last"][f"{split}_score"])
    assert f"{split} score {found.score:.4f}, recorded {found.score:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_the_score_of_another_precision_is_proven(precision: str, run: Callable[..., Result]) -> None:
    result = run(f"trainer.precision={precision}", "trainer.max_epochs=2")
    cfg = OmegaConf.load(result.folder / "config.yaml")
    dtype = {"bf16-true": torch.bfloat16, "64-true": torch.float64}[precision]
    assert student_of(result.folder, cfg, result.record).adapter.mean.dtype == dtype
    assert verify_run(result.folder).score == pytest.approx(result.record.metrics["last"]["test_score"])


def test_other_weights_are_found_out(folder: Path) -> None:
    path = folder / "student.safetensors"
    weights = load_file(path)
    weights["head.bias"][0] += 1e-6
    save_file(weights, path)
    with pytest.raises(UserError, match=r"student\.safetensors does not hold the weights that the run exported"):
        verify_run(folder)


def test_a_changed_score_is_found_out(folder: Path) -> None:
    record = RunRecord.read(folder)
    record.metrics["last"]["test_score"] += 0.01
    record.write(folder)
    with pytest.raises(UserError, match=r"does not give the recorded score"):
        verify_run(folder)


def test_a_run_that_was_scored_on_other_hardware(
    run: Callable[..., Result], capsys: pytest.CaptureFixture[str]
) -> None:
    """An honest run may miss the recorded score by the samples that rounding decides, and by no more."""
    for precision, allowed in (("32-true", 2), ("bf16-true", 8)):
        folder = run(f"trainer.precision={precision}", "trainer.max_epochs=1").folder
        exact = RunRecord.read(folder)
        assert exact.environment["scored_on"] == "cpu"
        here, gpu = exact.environment, {**exact.environment, "scored_on": "cuda"}
        unknown = {key: value for key, value in here.items() if key != "scored_on"}
        other_cpu = {**here, "cpu": "Another CPU"}
        elsewhere = allowed if precision == "bf16-true" else 0
        for place, most in ((here, 0), (gpu, allowed), (unknown, allowed), (other_cpu, elsewhere)):
            for missed in (most, -most, most + 1):
                record = replace(exact, environment=place, metrics=deepcopy(exact.metrics))
                record.metrics["last"]["test_score"] += missed / 797
                record.write(folder)
                if missed > most:
                    with pytest.raises(UserError, match="does not give the recorded score"):
                        verify_run(folder)
                else:
                    verify_run(folder)
                assert f"tolerance: {most} of 797 samples (scored on" in capsys.readouterr().out


def test_other_data_are_found_out(folder: Path) -> None:
    cfg = OmegaConf.load(folder / "config.yaml")
    cfg.data.train_size = 90
    OmegaConf.save(cfg, folder / "config.yaml")
    with pytest.raises(UserError, match=r"data of digits are not those of the run"):
        verify_run(folder)


def test_another_network_is_found_out(folder: Path, finished: Result) -> None:
    save_weights(finished.parts.distiller.teachers["main"].net, folder / "student.safetensors")
    with pytest.raises(UserError, match=r"does not fit the SmallCNN"):
        verify_run(folder)


def test_a_torn_export_is_found_out(folder: Path) -> None:
    path = folder / "student.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"student\.safetensors .* cannot be read"):
        verify_run(folder)


def test_a_failed_run_proves_nothing(run: Callable[..., Result], tmp_path: Path) -> None:
    folders: list[Path] = []

    class Noted(Dies):
        def on_fit_start(self, trainer: Any, module: Any) -> None:
            folders.append(Path(trainer.default_root_dir))

    with pytest.raises(Died):
        run(callbacks=[Noted(after=1)])
    with pytest.raises(UserError, match=r"is failed, not finished: Died: after step 1"):
        verify_run(folders[0])
    with pytest.raises(UserError, match=r"is not a run folder"):
        verify_run(tmp_path)
    (tmp_path / RECORD).write_text("{")
    with pytest.raises(UserError, match=r"is torn"):
        verify_run(tmp_path)


@pytest.mark.parametrize("split", ["train", "tset"])
def test_there_are_two_splits_to_score(split: str, finished: Result) -> None:
    with pytest.raises(UserError, match=rf"no split '{split}'"):
        verify_run(finished.folder, split)


def test_data_without_a_validation_split(run: Callable[..., Result]) -> None:
    record = RunRecord.read(folder := run("trainer.max_epochs=1", "callbacks.checkpoint_best=null").folder)
    record.metrics["last"]["val_score"] = None
    record.write(folder)
    with pytest.raises(UserError, match=r"has no score on val"):
        verify_run(folder, "val")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Teacher 'main' scores")
def test_a_student_teaches_the_next_one(finished: Result, run: Callable[..., Result]) -> None:
    """A run folder is a teacher: its network and its statistics come from its own config."""
    record = run(f"teachers.main.weights='{finished.folder}'", "trainer.max_epochs=1").record
    assert record.teachers["main"]["sha256"] == finished.record.student_sha256
    assert record.teachers["main"]["score"] == finished.record.metrics["last"]["test_score"]
    checkpoint = finished.folder / "checkpoints" / "last.ckpt"
    as_file = ["model/teacher=cnn", "teachers.main.net.widths=[16,32]", f"teachers.main.weights='{checkpoint}'"]
    record = run(*as_file, "trainer.max_epochs=1").record
    assert record.teachers["main"]["sha256"] == finished.record.student_sha256
