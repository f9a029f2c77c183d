"""What changed during a run, epoch by epoch: the entries of a record's `timeline`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Epoch:
    """One epoch of a run. The last one of a run that broke off ends with its last update.

    Attributes:
        epoch: counted from 1.
        step: updates done at its end.
        stage: name of the stage that was trained; empty in a run of one stage.
        lr: learning rate of its last update.
        score: on the validation split, of its last validation; None where there was none.
        numbers: the objective's, at the last update, by loss and attribute: `task.weight`, `kd.temperature`.
    """

    epoch: int
    step: int
    stage: str
    lr: float
    score: float | None
    numbers: Mapping[str, float]


def epochs_of(timeline: list[dict[str, Any]]) -> list[Epoch]:
    """The entries of a record's `timeline`, which are plain dicts."""
    return [Epoch(**entry) for entry in timeline]


def changes(epochs: list[Epoch]) -> bool:
    """Whether there is anything to see but the score: stages, or a number that changes."""
    return any(
        (each.stage, each.lr, each.numbers) != (epochs[0].stage, epochs[0].lr, epochs[0].numbers) for each in epochs
    )
