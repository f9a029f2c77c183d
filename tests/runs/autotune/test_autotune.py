"""Settings that are `auto`: the run is the one with the chosen settings given by hand, and nothing is timed twice."""

import json
import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from omegaconf import OmegaConf
from torch import nn

from distillery.commands import train as train_command
from distillery.config.check import check
from distillery.config.hydra_support import HYDRA_VERSION
from distillery.config.stages import RunSpec
from distillery.core.errors import UserError
from distillery.core.paths import CONFIGS
from distillery.results.record import RunRecord
from distillery.runs.autotune import autotune as module
from distillery.runs.autotune import rule, table, timed_job
from distillery.runs.autotune.shared import shared
from distillery.runs.autotune.timed_job import TimedJob
from distillery.runs.job import Job
from distillery.runs.ranks import of_first_rank
from distillery.runs.run import Result
from distillery.runs.study import run_study
from distillery.training.distiller import Distiller
from fixtures.command_line import Cli, Command
from fixtures.composing import Compose
from fixtures.runs import STUDENT, Died, Dies, train_student

OPEN = ("channels_last=auto", "fold_batchnorms=auto", "compile=auto")
BY_HAND = ("channels_last=true", "fold_batchnorms=true", "compile=false")


@pytest.fixture
def all_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job is timed, in one round each, whatever its length; all that can be timed is kept."""
    monkeypatch.setattr(module, "SHARE", float("inf"))
    monkeypatch.setattr(module, "ROUNDS", 1)
    monkeypatch.setattr(module, "SHORT", 1e-6)
    monkeypatch.setattr(rule, "verdict", lambda *_: (True, "as the test wants it"))


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("timed again")


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[RunSpec]:
    """The jobs that were timed, by a search that keeps the layout alone."""
    jobs: list[RunSpec] = []

    def tried(spec: RunSpec) -> dict[str, Any]:
        jobs.append(spec)
        return {"choice": {name: name == "channels_last" for name in spec.open}, "tried": []}

    monkeypatch.setattr(module, "tried", tried)
    return jobs


@pytest.mark.slow
@pytest.mark.usefixtures("all_pays")
def test_the_run_is_that_of_the_settings_by_hand(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bit for bit, though it is killed and resumed on the way, and nothing is timed when it is."""

    def no_compiler(net: nn.Module) -> None:
        raise RuntimeError("no compiler\n(a long story)")

    def student(name: str, *overrides: str, callbacks: Sequence[Dies] = ()) -> Result:
        return train_student(tmp_path / name, teacher, "loss/feature=[hint]", *overrides, callbacks=callbacks)

    monkeypatch.setattr(nn.Module, "compile", no_compiler)
    with pytest.raises(Died):
        student("auto", *OPEN, callbacks=[Dies(after=15)])
    found = RunRecord.read(tmp_path / "auto").autotune
    assert found["choice"] == {"channels_last": True, "fold_batchnorms": True, "compile": False}
    assert [entry["kept"] for entry in found["tried"]] == [True, True, False]
    assert found["tried"][2]["why"] == "left out: RuntimeError: no compiler"
    assert all(len(entry["step_ms"]) == 2 for entry in found["tried"][:2])
    assert found["steps"] == 30

    monkeypatch.setattr(module, "tried", refuse)
    capsys.readouterr()
    monkeypatch.setattr(table, "telling", lambda: True)
    resumed = student("auto", *OPEN)
    chosen = "channels_last=true, fold_batchnorms=true, compile=false"
    assert f"Settings that are auto, as chosen by this run before: {chosen}\n" in capsys.readouterr().out
    expected = student("hand", *BY_HAND)
    assert resumed.record.config_hash == expected.record.config_hash
    assert resumed.record.student_sha256 == expected.record.student_sha256
    assert resumed.record.metrics == expected.record.metrics
    assert resumed.record.autotune == found
    assert expected.record.autotune == {}
    assert resumed.record.timeline == expected.record.timeline
    own, others = (torch.load(tmp_path / name / "checkpoints/last.ckpt") for name in ("auto", "hand"))
    for part in ("state_dict", "optimizer_states", "random_state"):
        torch.testing.assert_close(own[part], others[part], rtol=0, atol=0, msg=part)
    assert student("auto", *OPEN).kept
    assert student("auto", *BY_HAND).kept, "it is the same job"
    with pytest.raises(UserError, match="compile is False there and auto here"):
        student("hand", *OPEN)


@pytest.mark.usefixtures("all_pays")
def test_a_job_that_fails_as_it_is_says_so_itself(
    compose_train: Compose, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = compose_train(
        *STUDENT,
        f"teachers.main.weights='{teacher}'",
        "loss/feature=[hint]",
        "loss.hint.layers={nowhere: layers.2}",
        *OPEN,
    )
    found = module.tried(check(cfg))
    assert found["choice"] == dict.fromkeys(("channels_last", "fold_batchnorms", "compile"), False)
    assert found["note"].startswith("Nothing was timed: The student network has no layer 'nowhere'")


def test_a_short_run_is_not_delayed(compose_train: Compose, teacher: Path) -> None:
    cfg = compose_train(*STUDENT, f"teachers.main.weights='{teacher}'", *OPEN, "trainer.precision=[32-true,64-true]")
    before = torch.random.get_rng_state()
    found = module.tried(check(cfg))
    assert torch.equal(torch.random.get_rng_state(), before)
    settings = ("trainer.precision=64-true", "channels_last=true", "fold_batchnorms=true", "compile=true")
    assert tuple(entry["setting"] for entry in found["tried"]) == settings
    assert all("not tried: it takes" in entry["why"] and not entry["kept"] for entry in found["tried"])
    assert found["choice"]["trainer.precision"] == "32-true"
    assert found["seconds"] < 60


def test_the_first_step_of_a_turn_does_not_count(
    compose_train: Compose, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock on which it takes a hundred seconds, and each other step one."""
    clock, step = [0.0], Distiller.training_step

    def timed_step(self: Distiller, *batch: Any) -> dict[str, Any]:
        clock[0] += 1 if self.trainer.global_step else 100
        return step(self, *batch)

    monkeypatch.setattr(Distiller, "training_step", timed_step)
    monkeypatch.setattr(timed_job, "now", lambda: clock[0])
    job = TimedJob(check(compose_train(*STUDENT, f"teachers.main.weights='{teacher}'")))
    assert [job.round(steps) for steps in (1, 3)] == [1, 1]
    assert job.timing.first == 100


def test_what_the_user_sets_is_not_tried(compose_train: Compose) -> None:
    spec = check(compose_train("experiment=digits_demo", "teachers.main.weights=x", "hardware=auto", "compile=false"))
    switches = {"channels_last": [False, True], "fold_batchnorms": [False, True]}
    assert spec.open == {**switches, "teacher_stream": [False], "step_graph": [False]}, "a CPU has neither"
    assert not spec.cfg.channels_last, "what trains nothing is made with the first value"
    for wrong, said in {
        "compile=automatic": "compile=automatic: it must be true, false, reduce-overhead or auto",
        "trainer.precision=[32-true,bf61]": "trainer.precision=bf61",
    }.items():
        with pytest.raises(UserError, match=said):
            check(compose_train("experiment=digits_demo", "teachers.main.weights=x", wrong))


@pytest.mark.slow
def test_a_plan_times_nothing(command: Command, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "tried", refuse)
    answer = command(
        train_command, "experiment=digits_demo", f"teachers.main.weights='{teacher}'", "compile=auto", "plan=true"
    )
    assert answer.code == 0
    assert "plan=true times nothing. What is open is planned with its first value: compile=false." in answer.out


def test_jobs_of_a_group_that_take_as_long_share_what_was_found(
    compose_train: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(table, "telling", lambda: True)

    def job(*overrides: str) -> Job:
        cfg = compose_train("experiment=digits_demo", "teachers.main.weights=x", *OPEN, *overrides)
        return Job(check(cfg), group=tmp_path / "study")

    found = [
        {"seed=0"},
        {"seed=1", "loss.kd.temperature=2", "optim.optimizer.lr=0.5", "method=other"},  # as the first
        {"data.batch_size=50"},
        {"trainer.max_epochs=1000"},  # compiling may pay there
        {"loss/feature=[hint]"},
        {"student.net.widths=[4,4]"},
        {"teachers.main.weights=y"},
    ]
    which = [
        shared(job(*overrides), lambda _, place=place: {"choice": {"by": place}})["choice"]["by"]
        for place, overrides in enumerate(found)
    ]  # type: ignore[misc]
    assert which == [0, 0, 2, 3, 4, 5, 6]
    said = f"Settings that are auto, as chosen by an earlier job, {tmp_path / 'study' / 'autotune.json'}: by=0\n"
    assert capsys.readouterr().out == said, "of the second job"
    assert shared(job("seed=2"), refuse) == {"choice": {"by": 0}}, "also in another process, from the file"
    alone = job()
    alone.group = None
    assert shared(alone, lambda _: {"by": "itself"}) == {"by": "itself"}


@pytest.mark.slow
def test_a_study_is_timed_once(tmp_path: Path, teacher: Path, timed: list[RunSpec]) -> None:
    tiny = ["trainer.max_epochs=1", "data.train_size=100", "min_teacher_score=0", "logger=none", *OPEN]
    overrides = [f"out='{tmp_path}'", "seeds=[0,1]", f"overrides={json.dumps(tiny)}"]
    with initialize_config_dir(str(CONFIGS), **HYDRA_VERSION):
        cfg = compose("study", overrides=["study=digits_demo", *overrides])
        cfg.methods = {"kd": ["loss/response=[kd]"]}
        cfg.teacher, cfg.student = None, [*cfg.student, f"teachers.main.weights='{teacher}'"]
        for _ in range(2):  # the second time, both are kept
            run_study(cfg)
    records = [RunRecord.read(tmp_path / "kd" / f"seed{seed}") for seed in (0, 1)]
    assert [record.autotune["choice"]["channels_last"] for record in records] == [True, True]
    assert len({record.config_hash for record in records}) == 2
    assert len(timed) == 1


@pytest.mark.slow
def test_a_sweep_is_timed_once(cli: Cli, teacher: Path, timed: list[RunSpec]) -> None:
    given = ("trainer.max_epochs=1", "trainer.enable_progress_bar=false", "logger=none", "hydra.sweep.dir=sweep")
    code, said = cli("train", "-m", *STUDENT, f"teachers.main.weights='{teacher}'", *given, *OPEN, "seed=0,1")
    assert code == 0, said
    assert len(timed) == 1
    assert [path.name for path in Path("sweep").glob("autotune.json")] == ["autotune.json"]


def decides_twice(rank: str, port: str, said: Any) -> None:
    """As a launcher starts a rank of a sweep's jobs, which come one after the other."""
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    cfg = OmegaConf.create({"trainer": {"devices": 2, "accelerator": "cpu"}})
    for job in range(2):
        said.put((job, rank, of_first_rank(cfg, lambda job=job: {"job": job, "by": rank})))  # type: ignore[misc]


def test_a_launcher_s_ranks_get_what_the_first_decides() -> None:
    forked = multiprocessing.get_context("fork")  # another Python would import torch
    said, port = forked.Queue(), str(find_free_network_port())
    ranks = [forked.Process(target=decides_twice, args=(rank, port, said)) for rank in "01"]
    for process in ranks:
        process.start()
    found = sorted((said.get(timeout=60) for _ in range(4)), key=str)
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    assert found == [(job, rank, {"job": job, "by": "0"}) for job in (0, 1) for rank in "01"]
