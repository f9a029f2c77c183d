"""Two processes as users start, stop and resume them; what they compute is compared in test_ranks.py."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from distillery.models.cnn import SmallCNN
from distillery.models.weights import read_weights, save_weights
from distillery.ranks import NUMBERS, VARIABLES
from distillery.results.schema import RunRecord
from fixtures.two_ranks import Notes

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
TESTS = Path(__file__).parent
TRAIN = (str(BIN / "distill-train"),)
TWO = ("hardware=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")
# 3 batches of 27 images, 14 and 13 a rank, and a last one of 19, 10 and 9 a rank.
JOB = (
    "data.train_size=100",
    "data.batch_size=27",
    "student.net.norm=none",
    "model/teacher=cnn",
    "teachers.main.net.widths=[4,6]",
    "trainer.log_every_n_steps=3",
    "trainer.max_epochs=4",
    "trainer.enable_progress_bar=false",
)
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "cnn.safetensors"
    save_weights(SmallCNN(10, 1, (4, 6)), path)
    return f"teachers.main.weights='{path}'"


@pytest.fixture
def start(teacher: str, tmp_path: Path) -> Iterator[Start]:
    """`start(command, overrides…)`: the command in `tmp_path`, in a process group of its own, as from a terminal."""
    running: list[subprocess.Popen[str]] = []
    clean = {name: value for name, value in os.environ.items() if name not in {*VARIABLES, *NUMBERS}}
    clean |= {"DISTILLERY_OUTPUTS": "outputs", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    clean["PYTHONPATH"] = os.pathsep.join((str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])))

    def started(command: Sequence[str], *overrides: str) -> subprocess.Popen[str]:
        running.append(
            subprocess.Popen(
                [*command, *overrides],
                cwd=tmp_path,
                env=clean,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
        return running[-1]

    yield started
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def ended(process: subprocess.Popen[str], seconds: float = 90) -> tuple[int, str]:
    """Exit code and all that was printed."""
    output, _ = process.communicate(timeout=seconds)
    return process.returncode, output


def runs(outputs: Path) -> list[Path]:
    """The run folders, after a look that there is nothing else: each folder is one, or in one, or holds one."""
    found = sorted(path.parent for path in outputs.rglob("run.json"))
    for path in outputs.rglob("*"):
        assert any(path.is_relative_to(run) or run.is_relative_to(path) for run in found), path
    return found


def losses(folder: Path) -> pd.DataFrame:
    """Each line of the terms, of all versions of the file; of a step that was done twice, the second time's."""
    lines = pd.concat([pd.read_csv(file) for file in sorted(folder.glob("metrics/version_*/metrics.csv"))])
    lines = lines.dropna(subset=["train/loss"]).drop_duplicates("step", keep="last").set_index("step")
    return lines[[name for name in lines if name.startswith("train/")]].sort_index()


def note(folder: Path) -> str:
    return f"+callbacks.notes={{_target_: fixtures.two_ranks.Notes, folder: '{folder}'}}"


def until(reached: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_line_of_the_log_is_the_global_mean(start: Start, teacher: str, tmp_path: Path) -> None:
    """Lines that several steps share, the last of an epoch's with unequal shares: 14 and 13, then 10 and 9."""
    for name, hardware in (("one", ()), ("two", TWO)):
        code, output = ended(start(TRAIN, *JOB, *hardware, teacher, f"paths.run={name}"))
        assert code == 0, output
    found, expected = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert set(found) == set(expected) == {"train/loss", "train/task", "train/kd"}
    assert list(found.index) == list(expected.index) == [3, 4, 6, 8, 9, 12, 15, 16]
    np.testing.assert_allclose(found[list(expected)], expected, rtol=1e-5)


def test_resumed_on_two_ranks_it_ends_as_the_one_that_was_not_stopped(
    start: Start, teacher: str, tmp_path: Path
) -> None:
    """The position in the epoch is each rank's own; its checkpoint was written by the first."""
    each_step = (
        "callbacks.checkpoint_last.every_n_epochs=null",
        "+callbacks.checkpoint_last.every_n_train_steps=1",
        "trainer.log_every_n_steps=1",
    )
    job = (*JOB, *TWO, *each_step, teacher)
    code, output = ended(start(TRAIN, *job, "paths.run=whole"))
    assert code == 0, output
    dies = f"+callbacks.dies={{_target_: fixtures.two_processes.DiesOnce, after: 6, folder: '{tmp_path}'}}"
    code, output = ended(start(TRAIN, *job, dies, "paths.run=cut"))
    assert code != 0
    assert torch.load(tmp_path / "cut/checkpoints/last.ckpt", weights_only=True)["global_step"] == 6
    code, output = ended(start(TRAIN, "resume=cut"))
    assert code == 0, output

    assert RunRecord.read(tmp_path / "cut").status == "finished"
    found, expected = (read_weights(tmp_path / run / "student.safetensors") for run in ("cut", "whole"))
    for key in expected:
        assert torch.equal(found[key], expected[key]), key
    pd.testing.assert_frame_equal(losses(tmp_path / "cut"), losses(tmp_path / "whole"), check_exact=True)


def test_torchrun_leaves_one_run_folder(start: Start, teacher: str, tmp_path: Path) -> None:
    """Its ranks compose their configs themselves, and name the folder by their own clock."""
    torchrun = (str(BIN / "torchrun"), "--nproc-per-node=2", "--master-port=0", "--standalone", "-m")
    code, output = ended(start((*torchrun, "fixtures.two_processes"), *JOB, *TWO, teacher, note(tmp_path / "notes")))
    assert code == 0, output
    assert sorted((each["rank"], each["world"]) for each in Notes.read(tmp_path / "notes")) == [(0, 2), (1, 2)]
    (run,) = runs(tmp_path / "outputs")
    assert RunRecord.read(run).status == "finished"
    assert output.count("test score") == 1
    with np.load(run / "predictions.npz") as arrays:
        assert len(set(arrays["index"])) == len(arrays["index"]) == 797


def test_a_teacher_is_judged_on_the_whole_split(start: Start, teacher: str) -> None:
    """Each rank scores its own share; neither a rank's own score nor a second message is shown."""
    said = []
    for hardware in ((), TWO):
        code, output = ended(start(TRAIN, *JOB, *hardware, teacher, "min_teacher_score=0.9"))
        assert code == 2, output
        assert output.count("less than min_teacher_score=0.9") == 1
        assert "Traceback" not in output
        assert "Rank 1" not in output
        said.append(output[output.index("error Teacher") :].split(", less than")[0])
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("sent", "everyone"),
    [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGTERM, True)],
    ids=["Ctrl-C", "kill", "the end of a batch job"],
)
def test_stopped_from_outside_no_rank_is_left(
    sent: signal.Signals, everyone: bool, start: Start, teacher: str, tmp_path: Path
) -> None:
    endless = ("trainer.max_epochs=100000", "paths.run=run", note(tmp_path / "notes"))
    process = start(TRAIN, *JOB, *TWO, teacher, *endless)
    until(lambda: (tmp_path / "run/checkpoints/last.ckpt").exists(), process)
    (os.killpg if everyone else os.kill)(process.pid, sent)
    code, output = ended(process, 30)
    assert code != 0, output
    assert RunRecord.read(tmp_path / "run").status == "failed"
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["epoch"] >= 0
    notes = Notes.read(tmp_path / "notes")
    assert len(notes) == 2
    assert not any(alive(each["pid"]) for each in notes)
