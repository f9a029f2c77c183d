"""The rule for a folder that already holds something: kept, resumed, refused, or replaced because the user said so."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from distillery.config.check import check
from distillery.core.errors import UserError
from distillery.results.layout import RECORD
from distillery.results.record import RunRecord
from distillery.runs.job import Job
from distillery.runs.run import train
from fixtures.runs import STEPS, STUDENT, Died, Dies, config, contents, sha256

Prepared = Callable[..., DictConfig]
TWO_TEACHERS = (
    "+teachers.second=${teachers.main}",
    "loss.kd.teacher=[main,second]",
    "+loss.kd.combine=mean",
)


@pytest.fixture
def prepared(teacher: Path, tmp_path: Path) -> Prepared:
    """`prepared(overrides…)`: the config of a run of one epoch in `tmp_path / "run"`."""
    given = (*STUDENT, f"teachers.main.weights='{teacher}'", "trainer.max_epochs=1", "logger=none")
    return lambda *more, place="run": config(tmp_path / place, *given, *more)


def job_of(cfg: DictConfig, overrides: Sequence[str] = ()) -> Job:
    return Job(check(cfg, overrides), overrides)


def identity(cfg: DictConfig) -> str:
    return job_of(cfg).identity()


def hold(cfg: DictConfig, status: str, checkpoint: bool = True, **changes: object) -> Path:
    """A folder as a run of this config would have left it, without the run."""
    folder = Path(cfg.paths.run)
    record = RunRecord(cfg.name, cfg.method, cfg.seed, identity(cfg), status=status, data={"name": "digits"})  # type: ignore[arg-type]
    replace(record, **changes).write(folder)  # type: ignore[arg-type]
    if checkpoint:
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "last.ckpt").write_bytes(b"weights of hours")
    return folder


def test_two_configs_are_the_same_job_if_they_compute_the_same(prepared: Prepared) -> None:
    own = identity(prepared())
    same = (
        "data.num_workers=2",
        "trainer.enable_progress_bar=true",
        "+callbacks.bar={_target_: lightning.pytorch.callbacks.RichProgressBar}",
        "logger=csv",
        "name=other",
        "method=other",
        "replace=true",
        "++data.root=elsewhere",
    )
    assert {identity(prepared(each)) for each in same} == {own}
    assert identity(prepared(place="another/place")) == own
    other = ("seed=1", "loss.kd.temperature=2", "data.train_size=90", "trainer.max_epochs=2", "task.weight=0.5")
    assert len({own, *(identity(prepared(each)) for each in other)}) == 1 + len(other)


def test_a_teacher_counts_by_its_weights(prepared: Prepared, teacher: Path, tmp_path: Path) -> None:
    own = identity(prepared())
    baseline = identity(prepared("model/teacher=none"))
    copy = tmp_path / "copy"
    shutil.copytree(teacher, copy)
    moved = f"teachers.main.weights='{copy}'"
    assert identity(prepared(moved)) == own
    replace(RunRecord.read(copy), student_sha256="retrained").write(copy)
    assert identity(prepared(moved)) != own
    assert identity(prepared("model/teacher=none", "++teachers.main.weights=elsewhere")) == baseline

    file = "teachers.main.weights='{}'".format
    for name in "ac":
        torch.save({"head.bias": torch.full((10,), float(ord(name)))}, tmp_path / f"{name}.pth")
    shutil.copy(tmp_path / "a.pth", tmp_path / "b.pth")
    a, b, c = (identity(prepared("model/teacher=cnn", file(tmp_path / f"{name}.pth"))) for name in "abc")
    assert a == b != c


def test_what_is_found_in_the_folder_decides(prepared: Prepared) -> None:
    """In fabricated folders, none of which is touched."""
    cfg, other = prepared(), prepared("seed=1")
    debug = prepared("name=debug")
    refused = "holds a {} run of another job \\(seed is .* there and 0 here\\).*replace=true.*hydra.run.dir="
    cases: list[tuple[DictConfig, DictConfig, dict[str, object], str | None]] = [
        (cfg, cfg, {"status": "finished"}, "found"),
        (cfg, cfg, {"status": "failed"}, "found"),
        (cfg, cfg, {"status": "running"}, "found"),
        (cfg, cfg, {"status": "failed", "data": {}, "checkpoint": False}, None),  # refused before it was built
        (cfg, other, {"status": "finished"}, refused.format("finished")),
        (cfg, other, {"status": "failed"}, refused.format("failed")),  # crashed: hours of training may be in it
        (cfg, other, {"status": "running", "checkpoint": False}, refused.format("running")),  # perhaps still alive
        (cfg, other, {"status": "failed", "checkpoint": False}, None),
        (prepared("replace=true"), other, {"status": "finished"}, None),
        (prepared("replace=true"), cfg, {"status": "finished"}, "found"),
        (debug, debug, {"status": "finished"}, None),
        (cfg, debug, {"status": "failed"}, None),
        (cfg, cfg, {"status": "finished", "sources": {":data": "other pictures"}}, "another job"),
    ]
    for job, held, left, expected in cases:
        folder = hold(held, **left)  # type: ignore[arg-type]
        (folder / "config.yaml").write_text("seed: 7")
        before = contents(folder)
        if expected in (None, "found"):
            assert (job_of(job).found() is None) == (expected is None), left
        else:
            with pytest.raises(UserError, match=expected):
                train(job)
        assert contents(folder) == before
        shutil.rmtree(folder)


def test_a_folder_that_holds_no_run(prepared: Prepared, tmp_path: Path) -> None:
    """Checkpoints of another program's, a torn record, a file in its place, and no permission."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert job_of(prepared()).found() is None, "an empty folder is nobody's"
    (tmp_path / "run" / "checkpoints" / "theirs.ckpt").write_bytes(b"x")
    with pytest.raises(UserError, match=r"holds checkpoints, but no run\.json\. Add replace=true"):
        train(prepared())
    assert (tmp_path / "run" / "checkpoints" / "theirs.ckpt").exists()
    assert job_of(prepared("replace=true")).found() is None

    (tmp_path / "run" / RECORD).write_text('{"version": 1,')
    with pytest.raises(UserError, match=r"is torn .*replace=true"):
        train(prepared())
    assert job_of(prepared("replace=true")).found() is None

    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run folder .*file/deeper/run cannot be made: .*file is not a folder"):
        train(prepared(place="file/deeper/run"))
    assert (tmp_path / "file").read_text() == ""


def test_no_permission(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """The superuser has every permission: asked in its place."""
    monkeypatch.setattr("distillery.runs.job.os.access", lambda path, mode: False)
    with pytest.raises(UserError, match=r"no permission to write the run folder"):
        train(prepared())


def test_a_finished_run_is_kept(prepared: Prepared, tmp_path: Path) -> None:
    """With two teachers, too: none of them is loaded to see that they are the same."""
    cfg = prepared(*TWO_TEACHERS)
    first = train(cfg)
    assert not first.kept
    before = contents(tmp_path / "run")
    again = train(prepared(*TWO_TEACHERS, "data.num_workers=2", "trainer.enable_progress_bar=true"))
    assert again.kept
    assert again.record == RunRecord.read(tmp_path / "run")
    assert contents(tmp_path / "run") == before
    with pytest.raises(UserError, match=r"was finished before"):
        _ = again.parts


def test_an_unfinished_run_is_resumed_and_ends_bit_equal(prepared: Prepared, tmp_path: Path) -> None:
    longer = ("trainer.max_epochs=2",)
    whole = train(prepared(*longer, place="whole")).folder
    with pytest.raises(Died):
        train(prepared(*longer), callbacks=[Dies(STEPS + 3)])
    steps: list[int] = []

    class Counts(Dies):
        def on_before_optimizer_step(self, trainer: object, *_: object) -> None:
            steps.append(trainer.global_step)  # type: ignore[attr-defined]

    train(prepared(*longer), callbacks=[Counts(-1)])
    assert steps == [*range(STEPS, 2 * STEPS)]
    assert sha256(tmp_path / "run" / "student.safetensors") == sha256(whole / "student.safetensors")


def test_a_run_that_replaces_another_has_its_own_results(prepared: Prepared, tmp_path: Path) -> None:
    train(prepared())
    wider = ("student.net.widths=[8]", "callbacks.checkpoint_best=null", "replace=true")
    record = train(prepared(*wider)).record
    assert record.metrics.keys() == {"last"}, "the best checkpoint was the other run's"
    with pytest.raises(UserError, match=r"loss\.task is nan"):
        train(prepared("optim.optimizer.lr=1e30", "replace=true"))
    assert RunRecord.read(tmp_path / "run").status == "failed"
    assert not list((tmp_path / "run").glob("*.safetensors")) + list((tmp_path / "run").glob("*.npz"))


def test_settings_are_checked_before_the_folder_is_touched(prepared: Prepared, tmp_path: Path) -> None:
    hold(prepared("seed=1"), "finished")
    before = contents(tmp_path / "run")
    for wrong in ("data.train_size=7", "loss.kd.teacher=mian", "trainer.accelerator=tpu", "optim.optimizer.lr=-1"):
        with pytest.raises(UserError):
            train(prepared("replace=true", wrong))
        assert contents(tmp_path / "run") == before, wrong


def test_a_failure_is_recorded_in_a_folder_of_its_own_alone(prepared: Prepared, tmp_path: Path) -> None:
    job_of(prepared(), ["seed=0"]).record_failure(OSError("no disk"))
    record = RunRecord.read(tmp_path / "run")
    assert (record.status, record.error, record.overrides) == ("failed", "OSError: no disk", ["seed=0"])
    hold(prepared("seed=1", place="other"), "finished")
    before = contents(tmp_path / "other")
    job_of(prepared(place="other")).record_failure(OSError("no disk"))
    assert contents(tmp_path / "other") == before
