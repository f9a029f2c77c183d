"""A run that was stopped and goes on ends as the one that was not stopped, bit for bit."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import lightning as L
import pandas as pd
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from distillery.core.errors import UserError
from distillery.results.record import RunRecord
from distillery.runs.job import resumed
from distillery.runs.run import train
from distillery.runs.verify_run import verify_run
from fixtures.runs import STEPS, STUDENT, Died, Dies, Once, config, sha256

# Losses with parameters of their own, augmentation, BatchNorm, a learning rate that falls: all of it is state.
RICH = (*STUDENT, "loss/response=[kd,dkd]", "loss/feature=[hint]", "loss/relation=[rkd]")
EACH_STEP = ("callbacks.checkpoint_last.every_n_epochs=null", "+callbacks.checkpoint_last.every_n_train_steps=1")
EVERY_THIRD = ("callbacks.checkpoint_last.every_n_epochs=null", "+callbacks.checkpoint_last.every_n_train_steps=3")
HINT_FIRST = ("loss/feature=[hint]", "+stages={hint: {epochs: 1, loss: {hint: {}}}, kd: {epochs: 1}}")
Prepared = Callable[..., DictConfig]
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="pip install -e '.[deepspeed]'")


@pytest.fixture
def prepared(teacher: Path, tmp_path: Path) -> Prepared:
    """`prepared(overrides…)`: the config of a run in `tmp_path / "run"`."""
    return lambda *more: config(tmp_path / "run", *RICH, f"teachers.main.weights='{teacher}'", *more)


@pytest.fixture(scope="module")
def whole(teacher: Path, once: Once) -> Path:
    """The run that was not stopped."""
    return once("rich", lambda folder: train(config(folder, *RICH, f"teachers.main.weights='{teacher}'"), RICH))


def stopped(cfg: DictConfig, after: int) -> Path:
    """The folder of a run that died in the step after so many."""
    with pytest.raises(Died):
        train(cfg, RICH, callbacks=[Dies(after)])
    return Path(cfg.paths.run)


def saved_step(folder: Path) -> int:
    step: int = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    return step


def logged(folder: Path, column: str) -> pd.DataFrame:
    """What training logged together with this, by step; of a step that was done twice, the second time's."""
    files = sorted((folder / "metrics").glob("version_*/metrics.csv"))
    lines = pd.concat([pd.read_csv(file) for file in files]).dropna(subset=[column]).dropna(axis=1)
    lines = lines.drop_duplicates("step", keep="last").set_index("step").sort_index()
    return lines.filter(like="train/").sort_index(axis=1)


def losses(folder: Path) -> pd.DataFrame:
    """Every loss of every step."""
    return logged(folder, "train/loss")


@pytest.mark.parametrize(
    ("overrides", "after", "saved"),
    [
        ((), 2 * STEPS, 2 * STEPS),  # in the first step of the last epoch
        ((), STEPS + 2, STEPS),  # in mid-epoch: that epoch is done again
        (EVERY_THIRD, STEPS + 3, STEPS + 2),  # in mid-epoch, saved there but for a step that is done again
        pytest.param(EACH_STEP, 2 * STEPS - 1, 2 * STEPS - 1, marks=pytest.mark.slow),  # before an epoch's last step
        pytest.param(EACH_STEP, 2 * STEPS, 2 * STEPS, marks=pytest.mark.slow),  # after it
        pytest.param(EACH_STEP, 1, 1, marks=pytest.mark.slow),
    ],
)
def test_it_ends_bit_equal(overrides: tuple[str, ...], after: int, saved: int, prepared: Prepared, whole: Path) -> None:
    folder = stopped(prepared(*overrides), after)
    assert saved_step(folder) == saved
    torch.manual_seed(99)  # the global generator is as it happens to be
    result = train(resumed(folder, []))
    assert sha256(folder / "student.safetensors") == sha256(whole / "student.safetensors")
    assert sha256(folder / "predictions.npz") == sha256(whole / "predictions.npz")
    assert result.record.metrics["last"] == RunRecord.read(whole).metrics["last"]
    pd.testing.assert_frame_equal(losses(folder), losses(whole), check_exact=True)
    shares, expected = (logged(each, "train/accuracy") for each in (folder, whole))
    assert list(expected) == ["train/accuracy", "train/agreement"]
    pd.testing.assert_frame_equal(shares, expected, check_exact=True)


def test_learning_rates_by_layer_and_a_schedule_of_timm_go_on(
    prepared: Prepared, teacher: Path, tmp_path: Path
) -> None:
    own = ["optim=adamw_linear", "optim/scheduler=timm_cosine", "optim.layer_decay=0.5", "optim.lr_scale.head=10"]
    own += ["optim.optimizer.lr=1e-2", "+optim.scheduler.noise_range_t=5", "trainer.max_epochs=2"]
    unstopped = train(config(tmp_path / "unstopped", *RICH, f"teachers.main.weights='{teacher}'", *own), RICH)
    folder = stopped(prepared(*own, *EACH_STEP), STEPS + 3)
    assert saved_step(folder) == STEPS + 3
    train(resumed(folder, []))
    assert sha256(folder / "student.safetensors") == sha256(unstopped.folder / "student.safetensors")


@pytest.mark.slow
def test_it_may_be_stopped_twice(prepared: Prepared, whole: Path) -> None:
    folder = stopped(prepared(*EACH_STEP), STEPS + 1)
    stopped(resumed(folder, []), 2 * STEPS + 2)
    train(resumed(folder, []))
    assert sha256(folder / "student.safetensors") == sha256(whole / "student.safetensors")
    verify_run(folder)


class Scores(L.Callback):
    """Of five epochs the fourth has the best: before, the student names one class only, and after it half of them."""

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._own = {name: value.clone() for name, value in module.state_dict().items()}
        module.student.net.head.bias.data[(1, 1, 1, 10, 5)[trainer.current_epoch] :] = -1e9

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        module.load_state_dict(self._own)


@pytest.mark.parametrize("moves", [False, True])
def test_the_best_score_is_that_of_the_epoch_before_the_stop(moves: bool, teacher: Path, tmp_path: Path) -> None:
    """It is neither that of the epoch before, which the fifth would surpass, nor unknown."""
    given = [*STUDENT, f"teachers.main.weights='{teacher}'", "trainer.max_epochs=5"]
    whole = train(config(tmp_path / "whole", *given), callbacks=[Scores()])
    *others, best, last = pd.read_csv(whole.folder / "metrics" / "version_0" / "metrics.csv")["val/score"].dropna()
    assert max(others) < last < best
    with pytest.raises(Died):
        train(config(tmp_path / "run", *given), callbacks=[Scores(), Dies(4 * STEPS)])
    folder = tmp_path / "run"
    if moves:
        folder = folder.rename(tmp_path / "elsewhere")
    found = train(resumed(folder, []), callbacks=[Scores()])
    assert found.record.metrics["best"] == whole.record.metrics["best"]
    assert found.record.metrics["best"]["epoch"] == 4


def test_a_run_that_was_stopped_early_is_not_trained_on(teacher: Path, tmp_path: Path) -> None:
    stop = "{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss, patience: 1, min_delta: 100}"
    given = [*STUDENT, f"teachers.main.weights='{teacher}'", "trainer.max_epochs=9", f"+callbacks.stop={stop}"]
    first = train(config(tmp_path / "run", *given))
    assert first.record.metrics["last"]["epoch"] == 2
    second = train(resumed(first.folder, []))
    assert second.record.metrics == first.record.metrics
    assert second.record.student_sha256 == first.record.student_sha256


def test_a_run_that_ended_by_its_steps_is_not_trained_on(prepared: Prepared) -> None:
    first = train(prepared(f"trainer.max_steps={2 * STEPS}"))
    second = train(resumed(first.folder, []))
    assert second.record.metrics == first.record.metrics
    assert second.record.metrics["last"]["epoch"] == 2


@pytest.fixture(scope="module")
def dropped(teacher: Path, once: Once) -> tuple[Path, tuple[str, ...]]:
    """A run whose student has dropout, and its overrides."""
    given = (*STUDENT, "student.net._target_=fixtures.dropout.DroppingCNN", f"teachers.main.weights='{teacher}'")
    return once("dropout", lambda folder: train(config(folder, *given))), given


@pytest.mark.parametrize(
    ("overrides", "after", "saved"),
    [
        ((), STEPS, STEPS),  # at an epoch's border
        (("trainer.check_val_every_n_epoch=2",), STEPS + 1, STEPS),  # after an epoch without validation
        (EVERY_THIRD, STEPS + 3, STEPS + 2),  # in mid-epoch
        pytest.param(EACH_STEP, 2 * STEPS - 1, 2 * STEPS - 1, marks=pytest.mark.slow),
    ],
)
def test_dropout_drops_the_same(
    overrides: tuple[str, ...],
    after: int,
    saved: int,
    dropped: tuple[Path, tuple[str, ...]],
    teacher: Path,
    tmp_path: Path,
) -> None:
    whole, given = dropped
    folder = stopped(config(tmp_path / "run", *given, *overrides), after)
    assert saved_step(folder) == saved
    torch.manual_seed(99)
    train(resumed(folder, []), callbacks=[Draws()])
    pd.testing.assert_series_equal(losses(folder)["train/loss"], losses(whole)["train/loss"], check_exact=True)
    assert sha256(folder / "student.safetensors") == sha256(whole / "student.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hardware", "stages"),
    [
        ("ddp", ()),
        pytest.param("fsdp2", HINT_FIRST, marks=pytest.mark.long),
        pytest.param("deepspeed", HINT_FIRST, marks=[pytest.mark.long, needs_deepspeed]),
    ],
)
def test_two_ranks_drop_the_same_each(hardware: str, stages: tuple[str, ...], teacher: Path, tmp_path: Path) -> None:
    """Of a batch of 25 one has 13 images and the other 12: their generators do not stay the same."""

    def ran(*overrides: str) -> int:
        command = [sys.executable, "-m", "distillery.commands.train", *overrides, "trainer.enable_progress_bar=false"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.run(command, cwd=tmp_path, env=environment, timeout=300, check=False).returncode

    given = [*STUDENT, *EVERY_THIRD, f"teachers.main.weights='{teacher}'", "data.batch_size=25"]
    given += [
        "student.net._target_=fixtures.dropout.DroppingCNN",
        "trainer.max_epochs=2",
        f"hardware={hardware}",
        *stages,
    ]
    given += ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]
    killed = f"+callbacks.killed={{_target_: fixtures.killed.KilledOnce, after: 7, done: '{tmp_path / 'done'}'}}"
    assert ran(*given, killed, "paths.run=run") == -signal.SIGKILL
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    states = saved["random_state"]["cpu"]
    assert len(states) == 2
    counts = [each["step"].data_ptr() for each in saved["optimizer_states"][0]["state"].values()]
    assert len(set(counts)) == len(counts) > 1  # an optimizer adds to each of them
    assert not states[0].equal(states[1])
    assert saved_step(tmp_path / "run") == 6
    again = ("resume=run",) if stages else (*given, killed, "paths.run=run")  # the same command resumes it as well
    assert ran(*again) == 0
    assert ran(*given, killed, "paths.run=whole") == 0
    assert sha256(tmp_path / "run" / "student.safetensors") == sha256(tmp_path / "whole" / "student.safetensors")


class Draws(L.Callback):
    """From the global generator, while the training starts."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        torch.rand(7)


def test_it_is_still_the_same_job(prepared: Prepared) -> None:
    folder = stopped(prepared(), STEPS)
    before = RunRecord.read(folder)
    after = train(resumed(folder, []), ["resume=there"]).record
    assert before.status == "failed"
    assert (after.status, after.error) == ("finished", None)
    for name in ("config_hash", "overrides", "started", "name", "method", "seed", "data"):
        assert getattr(after, name) == getattr(before, name), name
    assert before.seconds is not None
    assert after.seconds is not None
    assert after.seconds > before.seconds
    assert before.fit_seconds is not None
    assert after.fit_seconds is not None
    assert after.seconds > after.fit_seconds > before.fit_seconds > 0


def test_a_finished_run_has_nothing_left_to_do(prepared: Prepared) -> None:
    first = train(prepared())
    second = train(resumed(first.folder, []))
    assert second.record.student_sha256 == first.record.student_sha256
    assert second.record.metrics == first.record.metrics


@pytest.mark.filterwarnings("error:The dirpath has changed")
def test_a_folder_that_was_moved(prepared: Prepared, whole: Path, tmp_path: Path) -> None:
    old, new = stopped(prepared(), STEPS), tmp_path / "elsewhere"
    shutil.move(old, new)
    result = train(resumed(new, []))
    assert result.folder == new
    assert not old.exists()
    assert saved_step(new) == 3 * STEPS
    assert result.record.student_sha256 == RunRecord.read(whole).student_sha256


@pytest.mark.parametrize("override", ["seed=3", "loss.kd.temperature=2", "plan=true", "trainer.max_epochs=30"])
def test_a_contradicting_override_is_refused_by_name(override: str, whole: Path) -> None:
    with pytest.raises(UserError, match=rf"config from its folder, and {override} is not part of it"):
        resumed(whole, ["resume=x", RICH[0], override])


def test_its_own_overrides_are_no_contradiction(whole: Path) -> None:
    cfg = resumed(whole, [f"resume={whole}", *RICH])
    assert OmegaConf.to_container(cfg.loss) == OmegaConf.to_container(OmegaConf.load(whole / "config.yaml").loss)


def test_without_a_checkpoint_it_starts_again(prepared: Prepared, whole: Path) -> None:
    folder = stopped(prepared(), 1)  # the first checkpoint would have been written after the epoch
    with pytest.warns(UserWarning, match=r"has no checkpoints/last\.ckpt yet: the run starts again"):
        train(resumed(folder, []))
    assert sha256(folder / "student.safetensors") == sha256(whole / "student.safetensors")
    pd.testing.assert_frame_equal(losses(folder), losses(whole), check_exact=True)
    shares, expected = (logged(each, "train/accuracy") for each in (folder, whole))
    assert list(expected) == ["train/accuracy", "train/agreement"]
    pd.testing.assert_frame_equal(shares, expected, check_exact=True)


def test_from_a_torn_checkpoint_it_goes_on_from_the_one_before(prepared: Prepared, whole: Path) -> None:
    folder = stopped(prepared(), 2 * STEPS)
    last = folder / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:9000])
    with pytest.warns(UserWarning, match=rf"last\.ckpt is torn \(9000 bytes, .*last\.before\.ckpt, step {STEPS}\."):
        train(resumed(folder, []))
    assert sha256(folder / "student.safetensors") == sha256(whole / "student.safetensors")
    assert saved_step(folder) == 3 * STEPS


def test_torn_checkpoints_are_refused(prepared: Prepared) -> None:
    folder = stopped(prepared(), STEPS)
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"PK")
    before = RunRecord.read(folder)
    with pytest.raises(UserError, match=r"cannot be resumed: last\.ckpt is torn"):
        train(resumed(folder, []))
    assert RunRecord.read(folder) == before


def test_other_data_are_refused(prepared: Prepared) -> None:
    folder = stopped(prepared(), STEPS)
    cfg = OmegaConf.load(folder / "config.yaml")
    cfg.data.seed = 7
    OmegaConf.save(cfg, folder / "config.yaml")
    with pytest.raises(UserError, match=r"cannot be resumed: the data of digits are not those"):
        train(resumed(folder, []))
