"""Records what changes during training: stage, learning rate, weights, temperatures, score."""

import math
from typing import Any, cast

import lightning as L

from distillery.losses.term import Term
from distillery.results.timeline import Epoch
from distillery.tasks.metrics import SCORE
from distillery.training.distiller import Distiller
from distillery.training.objective import Objective


class Timeline(L.Callback):
    """One entry for each epoch (`results/timeline.py`), updated after each batch.

    The entries are state and saved in the checkpoint, so that a resumed run has each epoch once, even if the checkpoint
    was written in mid-epoch.

    Args:
        entries: the list in the run's record. It is changed in place, so that the record is up to date whenever it is
            written, also when the run fails.
    """

    def __init__(self, entries: list[dict[str, Any]]) -> None:
        self._entries = entries
        self._lr = 0.0

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        # At the end of the batch it is already that of the next.
        self._lr = float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, Distiller)
        epoch = trainer.current_epoch + 1
        former = [entry for entry in self._entries[-1:] if entry["epoch"] == epoch]
        score = former[0]["score"] if former else None
        entry = Epoch(epoch, trainer.global_step, module.stage, self._lr, score, numbers_of(module.objective))
        self._entries[len(self._entries) - len(former) :] = [vars(entry)]

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self._entries and not trainer.sanity_checking:
            score = float(trainer.callback_metrics[SCORE])
            self._entries[-1]["score"] = score if math.isfinite(score) else None

    def state_dict(self) -> dict[str, Any]:
        return {"entries": [dict(entry) for entry in self._entries]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._entries[:] = state_dict["entries"]


def numbers_of(objective: Objective) -> dict[str, float]:
    """All current weights and, of the losses with a weight other than 0, temperatures and numbers with a schedule."""
    terms = {name: cast(Term, term) for name, term in objective.terms.items()}
    weights = {"task": objective.task.weight} | {name: term.weight for name, term in terms.items()}
    others = {
        f"{name}.temperature": temperature
        for name, term in terms.items()
        for one in term.by_teacher.values()
        if (temperature := vars(one).get("temperature")) is not None
    }
    changing = (others | objective.changing()).items()
    active = {path: each for path, each in changing if weights.get(path.partition(".")[0], 1.0)}  # rollouts have none
    return {f"{name}.weight": float(weight) for name, weight in weights.items()} | active
