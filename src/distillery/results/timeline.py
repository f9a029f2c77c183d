"""What changed during a run, epoch by epoch: the entries of a record's `timeline`."""

from collections.abc import Mapping
from dataclasses import dataclass


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
