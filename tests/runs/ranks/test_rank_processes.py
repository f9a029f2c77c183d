"""How the processes of a job begin, and that they end together."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from distillery.config.hydra_support import HYDRA_VERSION
from distillery.core.errors import UserError
from distillery.results.record import RunRecord, config_hash
from distillery.runs import ranks as module
from distillery.runs.ranks import VARIABLES, Child, Ranks, SameJob, ranks
from distillery.runs.run import train
from fixtures.rank_jobs import JOB, SCRIPT, TWO, ended, started
from fixtures.runs import config
from fixtures.two_ranks import Notes, alive, note


@pytest.mark.slow
@pytest.mark.parametrize(
    ("callback", "said"),
    [
        ("{_target_: fixtures.two_ranks.Raises, rank: 1}", "Rank 1 ended with exit code 1, and so the job:"),
        pytest.param(
            "{_target_: fixtures.two_ranks.Killed, rank: 1}",
            "Rank 1 ended with exit code -9, and so the job:",
            marks=pytest.mark.long,
        ),
        ("{_target_: fixtures.two_ranks.Raises, rank: 0}", "OSError: rank 0 has lost its disk"),
    ],
)
def test_a_rank_that_fails_ends_the_job(callback: str, said: str, teacher: str, tmp_path: Path) -> None:
    """Also where the other waits for it in a collective operation, which no exception reaches."""
    run, notes = tmp_path / "run", tmp_path / "notes"
    process = started(
        tmp_path, SCRIPT, *JOB, *TWO, teacher, f"paths.run='{run}'", note(notes), f"+callbacks.fails={callback}"
    )
    code, output = ended(process)
    assert code != 0
    assert output.count(said) == 1
    if "Raises" in callback:
        assert "OSError: rank" in output
        assert {each["rank"] for each in Notes.read(notes)} == {0, 1}
    record = RunRecord.read(run)
    assert record.status == "failed"
    assert said in str(record.error)
    assert not list(tmp_path.glob("distillery-*"))
    assert not any(alive(each["pid"]) for each in Notes.read(notes))


@pytest.mark.slow
def test_an_error_of_the_user_is_shown_once(teacher: str, tmp_path: Path) -> None:
    run, notes = tmp_path / "run", tmp_path / "notes"
    broken = ("optim.optimizer.lr=1e30", f"paths.run='{run}'", note(notes))
    code, output = ended(started(tmp_path, SCRIPT, *JOB, *TWO, teacher, *broken))
    assert code == 2
    assert output.count("Training stopped in epoch 1") == 1
    assert "Traceback" not in output
    assert "Rank 1" not in output
    assert str(RunRecord.read(run).error).startswith("UserError: Training stopped in epoch 1")
    assert not any(alive(each["pid"]) for each in Notes.read(notes))


@pytest.mark.slow
def test_no_rank_outlives_the_first(teacher: str, tmp_path: Path) -> None:
    endless = ("trainer.max_epochs=100000", f"paths.run='{tmp_path / 'run'}'", note(tmp_path / "notes"))
    process = started(tmp_path, SCRIPT, *JOB, *TWO, teacher, *endless)
    deadline = time.monotonic() + 60
    while len(Notes.read(tmp_path / "notes")) < 2:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    ended(process)
    others = [each["pid"] for each in Notes.read(tmp_path / "notes") if each["pid"] != process.pid]
    assert len(others) == 1
    deadline = time.monotonic() + 15
    while alive(others[0]):
        assert time.monotonic() < deadline
        time.sleep(0.1)


class Started:
    """In place of a process: keeps the command, the variables and the config file it would have read."""

    all: list["Started"]

    def __init__(self, command: list[str], env: dict[str, str], **_: Any) -> None:
        place, name = (command[command.index(option) + 1] for option in ("--config-path", "--config-name"))
        self.command = command
        self.env = env
        with initialize_config_dir(place, **HYDRA_VERSION):
            self.cfg = compose(name)
        self.all.append(self)

    def poll(self) -> int:
        return 0

    def wait(self, timeout: float) -> int:
        return 0

    def terminate(self) -> None:
        pass


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Started]:
    for name in (*VARIABLES, "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    Started.all = []
    monkeypatch.setattr(module.subprocess, "Popen", Started)
    return Started.all


def no_failure(error: str) -> None:
    raise AssertionError(error)


def test_each_rank_reads_the_config_that_was_composed(recorded: list[Started], tmp_path: Path) -> None:
    cfg = config(
        tmp_path / "a folder, lr=1 [x]",
        *("experiment=digits_demo", "loss/response=[kd,dkd]", "loss/relation=[rkd]", "model/student=timm"),
        *("student.net.model_name=resnet18", "trainer.devices=3", "trainer.accelerator=cpu", "seed='${now:%f}'"),
        *("data.augment=null", "optim.optimizer.lr=1e-05"),
    )
    cfg.logger.csv.name = "a=b, 'c' \"d\" {e} [f] #g: h"
    with ranks(cfg, no_failure):
        inside = {name: os.environ[name] for name in VARIABLES}
    assert [each.env["LOCAL_RANK"] for each in recorded] == ["1", "2"]
    assert inside == {**{name: recorded[0].env[name] for name in VARIABLES}, "LOCAL_RANK": "0", "WORLD_SIZE": "3"}
    expected = OmegaConf.to_container(cfg, resolve=True) | {"replace": True}  # rank 0 has seen to the folder
    for each in recorded:
        assert each.command[:3] == [sys.executable, "-m", "distillery.commands.train"]
        assert OmegaConf.to_container(each.cfg) == expected
    assert config_hash(OmegaConf.to_container(recorded[0].cfg)) == config_hash(expected)  # type: ignore[arg-type]


def test_the_next_job_finds_the_environment_as_it_was(
    recorded: list[Started], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cfg = config(tmp_path, "model/teacher=none", *TWO)
    monkeypatch.setenv("MASTER_PORT", "12345")
    before = dict(os.environ)
    with ranks(cfg, no_failure):
        del os.environ["WORLD_SIZE"]  # as Lightning does
    assert dict(os.environ) == before
    assert recorded[0].env["MASTER_PORT"] == "12345"


@pytest.mark.parametrize("variable", ["LOCAL_RANK", "SLURM_NTASKS"])
def test_nothing_is_started_where_a_launcher_was(
    variable: str, recorded: list[Started], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(variable, "0")
    monkeypatch.delenv("SLURM_JOB_NAME", raising=False)
    with ranks(config(tmp_path, "model/teacher=none", *TWO), no_failure):
        pass
    assert recorded == []


def test_torchrun_with_another_number_of_processes_is_refused(
    recorded: list[Started], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    for number, settings in {"3": TWO, "2": (*TWO, "trainer.num_nodes=2"), "4": ("trainer.devices=1",)}.items():
        monkeypatch.setenv("WORLD_SIZE", number)
        with pytest.raises(UserError, match=rf"torchrun has started {number} process.* Set trainer\.devices to its"):
            train(config(tmp_path / "run", "model/teacher=none", *settings))
    assert recorded == []
    assert not (tmp_path / "run" / "run.json").exists()


def test_in_an_interactive_slurm_session_the_ranks_are_started(
    recorded: list[Started], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    with ranks(config(tmp_path, "model/teacher=none", *TWO), no_failure):
        pass
    assert len(recorded) == 1


Shell = Callable[..., Child]


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """`shell(script, rank)`: another rank, for which a shell runs."""
    running: list[Child] = []

    def made(script: str, rank: int = 1) -> Child:
        output = tmp_path / "ranks" / f"rank{rank}.txt"
        output.parent.mkdir(exist_ok=True)
        with output.open("wb") as file:
            process = subprocess.Popen(["sh", "-c", script], stdout=file, stderr=subprocess.STDOUT)
        running.append(Child(rank, process, output))
        return running[-1]

    yield made
    for child in running:
        child.process.kill()
        child.process.wait()


FAILS = "echo it has lost its disk; exit 3"
FAILURE = "Rank 1 ended with exit code 3, and so the job:\nit has lost its disk"


def test_the_end_of_the_other_ranks_is_waited_for(shell: Shell) -> None:
    well = Ranks([shell("sleep 0.2"), shell("true", 2)], no_failure)
    well.join()
    assert [child.process.poll() for child in well._children] == [0, 0]
    badly = Ranks([shell(FAILS), shell("exec sleep 60", 2)], no_failure)
    with pytest.raises(UserError) as found:
        badly.join()
    badly.end()
    assert str(found.value) == FAILURE
    assert badly._children[1].process.poll() == -signal.SIGTERM


def test_a_rank_that_does_not_end_is_killed(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE", 0.2)
    child = shell("trap '' TERM; echo ready; while :; do sleep 0.05; done")
    while not child.output.read_text():
        time.sleep(0.01)
    Ranks([child], no_failure).end()
    assert child.process.poll() == -signal.SIGKILL


def test_the_first_rank_names_the_one_that_made_it_fail(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "GRACE", 0.2)
    cfg, lost = config(tmp_path, "model/teacher=none", *TWO), OSError("connection closed by peer")
    for script, expected in ((FAILS, FAILURE), ("exec sleep 60", "connection closed by peer")):
        children = [shell(script)]
        monkeypatch.setattr(module, "_start", lambda *_, children=children: children)
        with pytest.raises((UserError, OSError)) as found, ranks(cfg, no_failure):
            raise lost
        assert str(found.value) == expected
        assert lost in (found.value, found.value.__cause__)


def test_a_rank_that_waits_for_one_that_failed_is_ended(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """This process may hang in a collective operation, which no exception reaches."""
    ended, failures = threading.Event(), list[str]()
    monkeypatch.setattr(module, "GRACE", 0.1)
    monkeypatch.setattr(module.os, "_exit", lambda code: ended.set() if code == 1 else None)
    other = shell("exec sleep 60", 2)
    group = Ranks([shell(FAILS), other], failures.append)
    assert ended.wait(10)
    group._ended.set()
    assert failures[0] == FAILURE
    assert f"error {FAILURE}" in capfd.readouterr().err
    assert other.process.wait(10) == -signal.SIGKILL
    assert not other.output.parent.exists()


def test_a_rank_ends_with_the_process_that_started_it(
    recorded: list[Started], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    watched: list[int] = []
    monkeypatch.setenv(module.PARENT, "123")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_end_with", watched.append)
        with ranks(config(tmp_path, "model/teacher=none", "trainer.devices=1"), no_failure):
            assert module.PARENT not in os.environ  # a rank of this job's is not one of the next
    assert watched == [123]

    parents = iter([123, 123, 1])  # then init has taken over
    codes: list[int] = []
    monkeypatch.setattr(module.os, "getppid", lambda: next(parents))
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    monkeypatch.setattr(module.os, "_exit", codes.append)
    module._end_with(123)
    assert codes == [1]
    assert list(parents) == []


def test_no_process_group_is_left(recorded: list[Started], tmp_path: Path) -> None:
    with ranks(config(tmp_path, "model/teacher=none", *TWO), no_failure):
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    assert not torch.distributed.is_initialized()


def test_ranks_with_another_config_are_refused(tmp_path: Path) -> None:
    first, other = (SameJob(config(tmp_path, "model/teacher=none", f"seed={seed}")) for seed in (0, 1))
    sent = SimpleNamespace(broadcast=lambda _: first._identity)
    trainer: Any = SimpleNamespace(strategy=sent, global_rank=1)
    first.on_fit_start(trainer, None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"Rank 1 was started with another config than rank 0"):
        other.on_fit_start(trainer, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "mend"),
    [("trainer.strategy=ddp_spawn", "Choose ddp"), ("trainer.sync_batchnorm=true", r"student\.net\.norm=group")],
)
def test_what_does_not_work_on_several_processes_is_refused(
    setting: str, mend: str, recorded: list[Started], tmp_path: Path
) -> None:
    cfg = config(tmp_path, "model/teacher=none", *TWO, setting)
    with pytest.raises(UserError, match=f"{setting} .* {mend}"), ranks(cfg, no_failure):
        pass
    assert recorded == []
