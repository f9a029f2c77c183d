"""Records what changes during training: stage, learning rate, weights, temperatures, score."""

import math
from dataclasses import replace
from typing import Any, cast

import lightning as L

from distillery.losses.term import Term
from distillery.results.timeline import Epoch, epochs_of
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
        """Append the entry, or replace the one of the same epoch."""
        self._entries[len(self._entries) - self._noted(epoch.epoch) :] = [dict(vars(epoch))]


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
    active = {path: each for path, each in (others | objective.changing()).items() if weights[path.partition(".")[0]]}
    return {f"{name}.weight": float(weight) for name, weight in weights.items()} | active
