"""A run that was stopped and goes on ends as the one that was not stopped, bit for bit."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from distillery.command import resumed
from distillery.errors import UserError
from distillery.prove import prove
from distillery.results.schema import RunRecord
from distillery.run import train
from fixtures.runs import STEPS, STUDENT, Died, Dies, Forgets, config, sha256

# Losses with parameters of their own, augmentation, BatchNorm, a learning rate that falls: all of it is state.
RICH = (*STUDENT, "loss/response=[kd,dkd]", "loss/feature=[hint]", "loss/relation=[rkd]")
EACH_STEP = ("callbacks.checkpoint_last.every_n_epochs=null", "+callbacks.checkpoint_last.every_n_train_steps=1")
EVERY_THIRD = ("callbacks.checkpoint_last.every_n_epochs=null", "+callbacks.checkpoint_last.every_n_train_steps=3")
Prepared = Callable[..., DictConfig]


@pytest.fixture
def prepared(teacher: Path, tmp_path: Path) -> Prepared:
    """`prepared(overrides…)`: the config of a run in `tmp_path / "run"`."""
    return lambda *more: config(tmp_path / "run", *RICH, f"teachers.main.weights='{teacher}'", *more)


@pytest.fixture(scope="module")
def whole(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that was not stopped."""
    torch.set_num_threads(1)
    cfg = config(tmp_path_factory.mktemp("whole") / "run", *RICH, f"teachers.main.weights='{teacher}'")
    return train(cfg, RICH).folder


def stopped(cfg: DictConfig, after: int) -> Path:
    """The folder of a run that died in the step after so many."""
    with pytest.raises(Died):
        train(cfg, RICH, callbacks=[Dies(after)])
    return Path(cfg.paths.run)


def saved_step(folder: Path) -> int:
    step: int = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    return step


def losses(folder: Path) -> pd.DataFrame:
    """Every loss of every step; of a step that was done twice, the second time's."""
    files = sorted((folder / "metrics").glob("version_*/metrics.csv"))
    lines = pd.concat([pd.read_csv(file) for file in files]).dropna(subset=["train/loss"])
    terms = [column for column in lines.columns if column.startswith("train/")]
    return lines.drop_duplicates("step", keep="last").set_index("step")[terms].sort_index()


@pytest.mark.parametrize(
    ("overrides", "after", "saved"),
    [
        ((), 2 * STEPS, 2 * STEPS),  # in the first step of the last epoch
        ((), STEPS + 2, STEPS),  # in mid-epoch: that epoch is done again
        (EVERY_THIRD, STEPS + 3, STEPS + 2),  # in mid-epoch, saved there but for a step that is done again
        pytest.param(EACH_STEP, 2 * STEPS - 1, 2 * STEPS - 1, marks=pytest.mark.slow),  # before an epoch's last step
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


@pytest.mark.slow
def test_it_may_be_stopped_twice(prepared: Prepared, whole: Path) -> None:
    folder = stopped(prepared(*EACH_STEP), STEPS + 1)
    stopped(resumed(folder, []), 2 * STEPS + 2)
    train(resumed(folder, []))
    assert sha256(folder / "student.safetensors") == sha256(whole / "student.safetensors")
    prove(folder)


def test_the_best_one_before_the_stop_stays_the_best(teacher: Path, tmp_path: Path) -> None:
    cfg = config(tmp_path / "run", *STUDENT, f"teachers.main.weights='{teacher}'", "trainer.max_epochs=5")
    folder = stopped(cfg, 4 * STEPS)
    before = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["global_step"]
    record = train(resumed(folder, []), callbacks=[Forgets(4)]).record
    assert record.metrics["best"]["epoch"] == before / STEPS < 5
    assert record.metrics["best"]["val_score"] > record.metrics["last"]["val_score"]


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


def test_a_finished_run_has_nothing_left_to_do(prepared: Prepared) -> None:
    first = train(prepared())
    second = train(resumed(first.folder, []))
    assert second.record.student_sha256 == first.record.student_sha256
    assert second.record.metrics == first.record.metrics


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
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


def test_without_a_checkpoint_it_is_refused(prepared: Prepared) -> None:
    folder = stopped(prepared(), 1)  # the first checkpoint would have been written after the epoch
    before = RunRecord.read(folder)
    with pytest.raises(UserError, match=r"cannot be resumed: it has no checkpoints/last\.ckpt"):
        train(resumed(folder, []))
    assert RunRecord.read(folder) == before


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run folder"):
        resumed(tmp_path / "nowhere", [])


def test_other_data_are_refused(prepared: Prepared) -> None:
    folder = stopped(prepared(), STEPS)
    cfg = OmegaConf.load(folder / "config.yaml")
    cfg.data.seed = 7
    OmegaConf.save(cfg, folder / "config.yaml")
    with pytest.raises(UserError, match=r"cannot be resumed: the data of digits are not those"):
        train(resumed(folder, []))
