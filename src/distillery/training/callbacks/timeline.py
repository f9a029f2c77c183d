"""Keeps what changes during training for the run's record: stage, learning rate, weights, temperatures, score."""

import math
from dataclasses import replace
from typing import Any, cast

import lightning as L

from distillery.losses.term import Term
from distillery.results.timeline import Epoch, epochs_of
from distillery.training.distiller import Distiller
from distillery.training.objective import Objective


class Timeline(L.Callback):
    """One entry an epoch (`results/timeline.py`), kept up to date after each batch.

    It is state, and in the checkpoint: also where that is written in the middle of an epoch, or before its end is told,
    a resumed run has each epoch once.

    Args:
        entries: the record's own list. It is changed in place, so that the record is true whenever it is written, also
            when the run fails.
    """

    def __init__(self, entries: list[dict[str, Any]]) -> None:
        self._entries = entries
        self._lr = 0.0

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._lr = float(trainer.optimizers[0].param_groups[0]["lr"])  # at the batch's end the next one's is set

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, Distiller)
        epoch = trainer.current_epoch + 1
        score = self._entries[-1]["score"] if self._noted(epoch) else None
        self._note(Epoch(epoch, trainer.global_step, module.stage, self._lr, score, numbers_of(module.objective)))

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self._entries and not trainer.sanity_checking:
            score = float(trainer.callback_metrics["val/score"])
            last = epochs_of(self._entries)[-1]
            self._note(replace(last, score=score if math.isfinite(score) else None))

    def state_dict(self) -> dict[str, Any]:
        return {"entries": list(self._entries)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._entries[:] = state_dict["entries"]

    def _noted(self, epoch: int) -> bool:
        return bool(self._entries) and self._entries[-1]["epoch"] == epoch

    def _note(self, epoch: Epoch) -> None:
        """In the place of what is known of that epoch so far."""
        self._entries[len(self._entries) - self._noted(epoch.epoch) :] = [dict(vars(epoch))]


def numbers_of(objective: Objective) -> dict[str, float]:
    """Every weight as it is now; the temperature, and all that has a schedule, of each loss whose weight is not 0."""
    terms = {name: cast(Term, term) for name, term in objective.terms.items()}
    weights = {"task": objective.task.weight} | {name: term.weight for name, term in terms.items()}
    others = {
        f"{name}.temperature": temperature
        for name, term in terms.items()
        for one in term.by_teacher.values()
        if (temperature := vars(one).get("temperature")) is not None
    }
    active = {path: each for path, each in (others | objective.changing()).items() if weights[path.partition(".")[0]]}
    return {f"{name}.weight": float(weight) for name, weight in weights.items()} | active
