"""A run that is killed with SIGKILL at any moment and resumed ends like one that was not killed."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from distillery.results.layout import CHECKPOINTS
from fixtures.killed import STAGES, TIME, Ended, Moment, Server, differences, drawn, killed, server
from fixtures.runs import STUDENT, config

pytestmark = pytest.mark.slow

# Everything that has state: dropout, BatchNorm, losses with parameters, their balance, a learning rate that falls at
# each step; and a best score that is not the last one.
RICH = (
    *STUDENT,
    "student.net._target_=fixtures.dropout.DroppingCNN",
    "loss/response=[kd,dkd]",
    "loss/feature=[hint]",
    "loss/relation=[rkd]",
    "objective.balance=auto",
    "objective.balance_steps=15",
    "optim.optimizer.lr=0.005",
    "trainer.max_epochs=4",
)
EVERY_THIRD = ("callbacks.checkpoint_last.every_n_epochs=null", "+callbacks.checkpoint_last.every_n_train_steps=3")
RUNS = {
    "three stages": STAGES,
    "three stages, saved every third step": (*STAGES, *EVERY_THIRD),
    "one stage, saved every third step": (*RICH, *EVERY_THIRD),
}


TURNS = 14  # each of the places once, at a time of its own; of stages that is twice for two ways of saving


class Trials:
    """Runs of one config, killed or not.

    Args:
        runs: what runs them.
        place: an empty folder.
    """

    def __init__(self, runs: Server, place: Path, overrides: tuple[str, ...]) -> None:
        self._runs = runs
        self._place = place
        self._overrides = overrides
        self._numbers = count()
        self.folder = place / "whole"
        self.whole = runs.run(config(self.folder, *overrides))
        assert self.whole.code == 0, self.whole.said

    def killed(self, *moments: Moment) -> tuple[Path, list[Ended]]:
        """Its folder, and how it ended each time."""
        folder = self._place / str(next(self._numbers))
        return folder, killed(self._runs, config(folder, *self._overrides), *moments)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("server")) as each:
        yield each


# One of the runs has every kind of place in which to be killed.
IN_CI = "three stages, saved every third step"
PARAMS = [pytest.param(name, marks=[] if name == IN_CI else pytest.mark.long) for name in RUNS]


@pytest.fixture(scope="module", params=PARAMS)
def trials(
    request: pytest.FixtureRequest, runs: Server, teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> Trials:
    given = (*RUNS[request.param], f"teachers.main.weights='{teacher}'")
    return Trials(runs, tmp_path_factory.mktemp("trials"), given)


def assert_equal_to_the_whole(trials: Trials, *moments: Moment) -> None:
    folder, (first, *others) = trials.killed(*moments)
    if moments[0].place != TIME:
        assert first.code == -signal.SIGKILL, first.said
    assert others[-1].code == 0, others[-1].said
    assert differences(folder, trials.folder) == []


@pytest.mark.parametrize(
    "turn", [pytest.param(turn, marks=[pytest.mark.long] * bool(turn % 3)) for turn in range(TURNS)]
)
def test_it_ends_as_the_run_that_was_not_killed(turn: int, trials: Trials) -> None:
    assert_equal_to_the_whole(trials, drawn(trials.whole, TURNS, seed=0)[turn])


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_it_may_be_killed_again(seed: int, trials: Trials) -> None:
    one, *_, other = drawn(trials.whole, 5, seed)
    assert_equal_to_the_whole(trials, one, other, one)


def test_the_moments_are_those_that_are_meant(trials: Trials) -> None:
    """In the middle of a write there is a part of a checkpoint; the places are all there."""
    writes = trials.whole.visits["checkpoint write"]
    folder, (first, second) = trials.killed(Moment("checkpoint write", writes - 1))
    assert (first.code, second.code) == (-signal.SIGKILL, 0), second.said
    assert writes > 500
    assert not list((folder / CHECKPOINTS).glob("*.draft"))
    assert {moment.place for moment in drawn(trials.whole, TURNS, 0)} == {*trials.whole.visits, TIME}
    assert len(trials.whole.visits) in (11, 13)  # two at the borders of stages


def test_a_run_that_is_killed_before_its_update(runs: Server, teacher: Path, tmp_path: Path) -> None:
    trials = Trials(runs, tmp_path, (*STUDENT, "trainer.max_epochs=2", f"teachers.main.weights='{teacher}'"))
    assert_equal_to_the_whole(trials, Moment("between backward and update", 14))


def test_another_run_is_told(runs: Server, teacher: Path, tmp_path: Path) -> None:
    """What is compared does differ between runs of two seeds."""
    given = (*STUDENT, "trainer.max_epochs=1", f"teachers.main.weights='{teacher}'")
    for seed in (0, 1):
        assert runs.run(config(tmp_path / str(seed), *given, f"seed={seed}")).code == 0
    found = differences(tmp_path / "1", tmp_path / "0")
    assert {"student.safetensors", "metrics", "last.ckpt state_dict", "last.ckpt optimizer_states"} <= set(found)
    assert "last.ckpt lr_schedulers" not in found


@pytest.mark.long
def test_a_hundred_kills() -> None:
    script = Path(__file__).parents[2] / "scripts/kill.py"
    said = subprocess.run(
        [sys.executable, script, "--moments", "100"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    assert "100 of 100 runs" in said
