"""SIGTERM ends a run, all of its ranks, or a study: at once, with its own exit code, and the record says why."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import pytest

from distillery.core.process import NUMBERS
from distillery.results.layout import RECORD
from distillery.results.record import RunRecord
from distillery.runs.run import train
from distillery.training.callbacks.termination import Termination
from fixtures.runs import config
from fixtures.two_ranks import Notes, alive, note

TESTS = Path(__file__).parent
SCRIPTS = Path(sys.executable).parent
EXIT_CODE = 143  # POSIX: 128 and the signal's number, 15
# 100 images in batches of 10, no teacher
JOB = (
    "experiment=digits_teacher",
    "data.train_size=100",
    "data.batch_size=10",
    "trainer.max_epochs=2",
    "trainer.check_val_every_n_epoch=1",
    "trainer.enable_progress_bar=false",
    "logger=none",
)
ENDLESS = "trainer.max_epochs=100000"
TWO = ("hardware=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class Loses:
    """Python drops what is raised in here."""

    def __del__(self) -> None:
        terminate()


class InAStep(L.Callback):
    def on_before_optimizer_step(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == 3:
            self.send()

    def send(self) -> None:
        terminate()


class InAFinaliser(InAStep):
    def send(self) -> None:
        Loses()


class AgainWhileItEnds(InAStep):
    undisturbed = False

    def on_exception(self, *_: object) -> None:
        terminate()
        self.undisturbed = True


class InValidation(L.Callback):
    def on_validation_batch_end(self, *_: object) -> None:
        terminate()


class AfterTheFit(L.Callback):
    """Lightning has put back by then what it found."""

    def on_fit_end(self, *_: object) -> None:
        terminate()


class Handlers(L.Callback):
    """Notes which handlers a training finds, from its start on: a teacher may be scored for minutes there."""

    found: ClassVar[set[Any]] = set()

    def on_train_start(self, *_: object) -> None:
        self.found.add(signal.getsignal(signal.SIGTERM))

    def on_train_batch_end(self, *_: object) -> None:
        self.found.add(signal.getsignal(signal.SIGTERM))


NOTE_HANDLERS = "+callbacks.handlers={_target_: test_termination.Handlers}"


@pytest.fixture
def former() -> Iterator[Callable[..., None]]:
    """The handler of a program that trains."""

    def handler(*_: object) -> None:
        pass

    before = signal.signal(signal.SIGTERM, handler)
    yield handler
    signal.signal(signal.SIGTERM, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("sender", [InAStep, InAFinaliser, InValidation, AfterTheFit])
def test_sigterm_ends_the_run(
    sender: type[L.Callback], former: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        train(config(tmp_path / "run", *JOB), callbacks=[sender()])
    assert stopped.value.code == EXIT_CODE
    assert signal.getsignal(signal.SIGTERM) is former
    assert f"Stopped by SIGTERM: {tmp_path / 'run'}\n" in capsys.readouterr().err
    record = RunRecord.read(tmp_path / "run")
    assert record.status == "failed"
    assert str(record.error).startswith("InterruptedError: SIGTERM from outside: ")
    assert not (tmp_path / "run" / "student.safetensors").exists()


def test_a_second_sigterm_does_not_disturb_the_end_of_the_run(former: object, tmp_path: Path) -> None:
    """`timeout` sends it to the process, and then to its group."""
    sender = AgainWhileItEnds()
    with pytest.raises(SystemExit) as stopped:
        train(config(tmp_path / "run", *JOB), callbacks=[sender])
    assert stopped.value.code == EXIT_CODE
    assert sender.undisturbed
    assert RunRecord.read(tmp_path / "run").status == "failed"


def test_a_run_that_is_left_alone_leaves_the_handler_as_it_was(
    former: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Handlers.found.clear()
    assert train(config(tmp_path / "run", *JOB, NOTE_HANDLERS)).record.status == "finished"
    assert len(Handlers.found) == 1
    assert not Handlers.found & {former, signal.SIG_DFL, None}
    assert signal.getsignal(signal.SIGTERM) is former
    assert capsys.readouterr().err == ""


def test_a_run_in_a_thread_sets_no_handler(former: object, tmp_path: Path) -> None:
    """Python would refuse it."""
    Handlers.found.clear()
    cfg, statuses = config(tmp_path / "run", *JOB, NOTE_HANDLERS), []
    thread = threading.Thread(target=lambda: statuses.append(train(cfg).record.status))
    thread.start()
    thread.join()
    assert statuses == ["finished"]
    assert Handlers.found == {former}


def test_on_slurm_lightning_s_handler_stays(former: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.delenv("SLURM_JOB_NAME", raising=False)
    with Termination(tmp_path) as termination:
        termination.on_train_start()
        assert signal.getsignal(signal.SIGTERM) is former
    assert signal.getsignal(signal.SIGTERM) is former


def test_another_rank_ends_as_without_a_handler(
    former: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in (*NUMBERS, "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with Termination(tmp_path):
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is former


@contextmanager
def begun(cwd: Path, program: str, *overrides: str) -> Iterator["subprocess.Popen[str]"]:
    """A command in a process of its own, which does not outlive the test."""
    process = subprocess.Popen(
        [str(SCRIPTS / program), *overrides],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def await_training(process: "subprocess.Popen[str]", folder: Path, ranks: int) -> list[int]:
    """The process ids, as soon as each rank has noted in `folder` that it trains."""
    deadline = time.monotonic() + 60
    while len(notes := Notes.read(folder)) < ranks:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return [each["pid"] for each in notes]


def terminated(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Exit code, output and errors after a SIGTERM to this one process. Raises `TimeoutExpired` if it goes on."""
    process.terminate()
    output, errors = process.communicate(timeout=20)
    return process.returncode, output, errors


@pytest.mark.slow
@pytest.mark.parametrize("devices", [(), ("student.net.norm=group", *TWO)], ids=["one process", "two ranks"])
def test_a_terminated_command_ends_quietly_and_whole(devices: tuple[str, ...], tmp_path: Path) -> None:
    run, notes = tmp_path / "run", tmp_path / "notes"
    given = (*JOB, *devices, ENDLESS, f"hydra.run.dir='{run}'", note(notes))
    with begun(tmp_path, "distill-train", *given) as process:
        pids = await_training(process, notes, ranks=2 if devices else 1)
        code, output, errors = terminated(process)
    assert (code, errors) == (EXIT_CODE, f"Stopped by SIGTERM: {run}\n")
    assert "Traceback" not in output
    assert process.pid in pids
    assert not any(alive(pid) for pid in pids)
    record = RunRecord.read(run)
    assert record.status == "failed"
    assert str(record.error).startswith("InterruptedError: SIGTERM from outside: ")


@pytest.mark.slow
def test_a_terminated_study_does_not_go_on_with_the_next_run(tmp_path: Path) -> None:
    out, notes = tmp_path / "study", tmp_path / "notes"
    teacher = ["experiment=digits_teacher", "trainer.max_epochs=1"]
    student = ["experiment=digits_demo", "min_teacher_score=0", ENDLESS, note(notes)]
    given = (f"out='{out}'", f"teacher={json.dumps(teacher)}", f"student={json.dumps(student)}")
    with begun(tmp_path, "distill-study", "study=digits_demo", *given) as process:
        await_training(process, notes, ranks=1)
        code, output, errors = terminated(process)
    assert code == EXIT_CODE
    assert "Traceback" not in output + errors
    assert errors == f"Stopped by SIGTERM: {out}/baseline/seed0\n"
    records = {path.parent.relative_to(out).as_posix(): RunRecord.read(path.parent) for path in out.rglob(RECORD)}
    statuses = {run: record.status for run, record in records.items()}
    assert statuses == {"teacher": "finished", "baseline/seed0": "failed"}
    assert str(records["baseline/seed0"].error).startswith("InterruptedError: SIGTERM from outside: ")
    assert not (out / "report.md").exists()
