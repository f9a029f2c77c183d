"""Fixtures of the tests of jobs on two processes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from distillery.runs.run import train
from fixtures.rank_jobs import IMPORTABLE, JOB, LR, SCRIPT, TWO, ended, started
from fixtures.runs import Once, config


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for the ranks that a run in this process starts."""
    monkeypatch.setenv("PYTHONPATH", IMPORTABLE)


@pytest.fixture(scope="session")
def teacher(teacher: Path) -> str:
    """The override that names it."""
    return f"teachers.main.weights='{teacher}'"


@pytest.fixture(scope="session")
def alone(teacher: str, once: Once) -> Callable[[float], Path]:
    """`alone(lr)`: the folder of the job on one process."""
    return lambda lr=LR: once(
        f"one rank, lr={lr}", lambda folder: train(config(folder, *JOB, teacher, f"optim.optimizer.lr={lr}"))
    )


@pytest.fixture(scope="session")
def together(teacher: str, once: Once) -> tuple[Path, str]:
    """The same on two: its folder, in a path that needs quotes, and all that it printed."""

    def make(folder: Path) -> None:
        folder.mkdir()
        code, output = ended(started(folder, SCRIPT, *JOB, *TWO, teacher, f"paths.run='{folder / name}'"))
        assert code == 0, output
        (folder / "printed.txt").write_text(output, encoding="utf-8")

    name = "two ranks, x=1"
    folder = once("two_ranks", make)
    return folder / name, (folder / "printed.txt").read_text(encoding="utf-8")
