"""Whatever moment a process is killed at, there is a whole checkpoint to go on from, and it is found."""

import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from distillery.core.errors import UserError
from distillery.core.files import SUFFIX, atomic_write, remove_unfinished
from distillery.results.layout import BEFORE_LAST, CHECKPOINTS, LAST
from distillery.runs.checkpoints import LastCheckpoint, WholeCheckpoints, last_checkpoint
from distillery.runs.trainer import make_trainer
from fixtures.runs import STUDENT, config, train_student


class Killed(BaseException):
    """In the place of SIGKILL, for a test that looks on."""


def save(run: Path, step: int, name: str = LAST) -> None:
    WholeCheckpoints().save_checkpoint(
        {"global_step": step, "weights": torch.full((500,), step)}, run / CHECKPOINTS / name
    )


def step_of(path: Path | None) -> int | None:
    if path is None:
        return None
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["weights"].eq(checkpoint["global_step"]).all()
    step: int = checkpoint["global_step"]
    return step


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def truncate(path: Path, size: int) -> None:
    os.truncate(path, size)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_the_one_before_the_last_is_kept(tmp_path: Path) -> None:
    save(tmp_path, 1)
    assert files(tmp_path / CHECKPOINTS) == {LAST}
    save(tmp_path, 2)
    save(tmp_path, 3)
    assert files(tmp_path / CHECKPOINTS) == {LAST, BEFORE_LAST}
    assert step_of(tmp_path / CHECKPOINTS / LAST) == 3
    assert step_of(tmp_path / CHECKPOINTS / BEFORE_LAST) == 2
    save(tmp_path, 1, "best.ckpt")
    save(tmp_path, 2, "best.ckpt")
    assert files(tmp_path / CHECKPOINTS) == {LAST, BEFORE_LAST, "best.ckpt"}


@pytest.mark.parametrize("call", ["torch.save", "os.fsync", "os.replace", "second os.replace"])
@pytest.mark.parametrize("done", [False, True])
def test_there_is_a_whole_one_whichever_call_is_the_last(
    call: str, done: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    owner = torch if call.startswith("torch") else os
    name, later = call.split(".")[1], call.startswith("second")
    real, calls = getattr(owner, name), []

    def dies(*args: object) -> None:
        calls.append(args)
        if len(calls) == 1 + later:
            if done:
                real(*args)
            raise Killed
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dies)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # a killed process tidies nothing
        with pytest.raises(Killed):
            save(tmp_path, 3)
    remove_unfinished(tmp_path)
    assert files(tmp_path / CHECKPOINTS) <= {LAST, BEFORE_LAST}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert step_of(last_checkpoint(tmp_path)) == (3 if call.startswith("second") and done else 2)


def test_a_block_that_raises_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "there" / "file.txt"
    with atomic_write(path) as unfinished:
        unfinished.write_text("old")
    with suppress(Killed), atomic_write(path) as unfinished:
        unfinished.write_text("ne")
        raise Killed
    assert path.read_text() == "old"
    assert files(path.parent) == {"file.txt"}


def test_drafts_of_killed_processes_are_removed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for name in (f".run.json.17{SUFFIX}", f"{CHECKPOINTS}/.{LAST}.17{SUFFIX}"):
        (tmp_path / name).write_text("to")
    for kept in (".hidden", "draft"):
        (tmp_path / kept).write_text("mine")
    remove_unfinished(tmp_path)
    assert files(tmp_path) == {CHECKPOINTS, ".hidden", "draft"}
    assert files(tmp_path / CHECKPOINTS) == {LAST}


def test_the_last_one_is_taken(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    assert step_of(last_checkpoint(tmp_path)) == 2
    assert not recwarn.list


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: truncate(path, 0),
    "begun": lambda path: truncate(path, 100),
    "cut": lambda path: truncate(path, path.stat().st_size - 1),
    "a bit": lambda path: flip(path, path.read_bytes().index(torch.full((500,), 2).numpy().tobytes()) + 1000),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),  # what a power cut may leave
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_torn_one_is_told_and_the_one_before_is_taken(damage: str, tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    DAMAGES[damage](tmp_path / CHECKPOINTS / LAST)
    size = (tmp_path / CHECKPOINTS / LAST).stat().st_size
    with pytest.warns(
        UserWarning, match=rf"last\.ckpt is torn \({size} bytes, .+\); resuming from last\.before\.ckpt, step 1\.$"
    ):
        assert step_of(last_checkpoint(tmp_path)) == 1


def test_one_that_is_missing_is_told(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / CHECKPOINTS / LAST).unlink()
    with pytest.warns(UserWarning, match=r"last\.ckpt is missing; resuming from last\.before\.ckpt, step 1\.$"):
        assert step_of(last_checkpoint(tmp_path)) == 1


@pytest.mark.parametrize("before", [False, True])
def test_only_torn_ones_are_refused(before: bool, tmp_path: Path) -> None:
    for step in range(1 + before):
        save(tmp_path, step)
    for path in (tmp_path / CHECKPOINTS).iterdir():
        truncate(path, 50)
    named = r"last\.ckpt is torn \(.+\)" + (r" and last\.before\.ckpt is torn \(.+\)" if before else "")
    with pytest.raises(UserError, match=rf"cannot be resumed: {named}\. Put back a copy"):
        last_checkpoint(tmp_path)


def test_none_is_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"has no checkpoints/last\.ckpt yet: the run starts again from its beginning"):
        assert last_checkpoint(tmp_path) is None


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_a_run_writes_them_so_in_any_precision(precision: str, teacher: Path, tmp_path: Path) -> None:
    folder = train_student(tmp_path / "run", teacher, f"trainer.precision={precision}", "trainer.max_epochs=2").folder
    assert files(folder / CHECKPOINTS) == {LAST, BEFORE_LAST, "best.ckpt"}
    assert [torch.load(folder / CHECKPOINTS / name, weights_only=True)["epoch"] for name in (BEFORE_LAST, LAST)] == [
        0,
        1,
    ]


def test_the_last_one_knows_the_best_score_of_its_own_epoch(teacher: Path, tmp_path: Path) -> None:
    scores = []

    class Notes(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            scores.append(float(trainer.callback_metrics["val/score"]))

    folder = train_student(tmp_path / "run", teacher, callbacks=[Notes()]).folder
    assert scores[-1] > max(scores[:-1])
    states = torch.load(folder / CHECKPOINTS / LAST, weights_only=True)["callbacks"]
    (best,) = (state for key, state in states.items() if ModelCheckpoint.__name__ in key and state["monitor"])
    assert float(best["best_model_score"]) == scores[-1]


def test_the_last_checkpoint_is_written_after_all_others(tmp_path: Path) -> None:
    cfg = config(tmp_path / "run", *STUDENT, "callbacks=route", "teachers.main.weights=there")
    callbacks: Any = make_trainer(cfg, [], [L.Callback()]).callbacks  # type: ignore[attr-defined]
    saving = [each for each in callbacks if isinstance(each, ModelCheckpoint)]
    assert [type(each) for each in saving[-2:]] == [ModelCheckpoint, LastCheckpoint]
    assert callbacks[-len(saving) :] == saving
