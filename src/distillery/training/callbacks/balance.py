"""`objective.balance=auto`: finds weights with which the gradients of all losses have the same norm."""

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any, cast

import lightning as L
from torch import Tensor

from distillery.core.errors import UserError
from distillery.core.files import atomic_write
from distillery.core.terminal import say, telling
from distillery.losses.term import Term
from distillery.results.layout import BALANCE
from distillery.training.distiller import Distiller
from distillery.training.gradient_norms import gradient_norms


class Balance(L.Callback):
    """Over the first steps, sets each weight so that the loss's gradient at the student has the task loss's norm.

    A weight is the ratio of the two mean norms of the steps so far, rounded to six digits. After the last of these
    steps it is constant. Before the first step the weights are 0. If `task.weight` is 0, the first loss keeps its
    weight and the others are balanced against it.

    Args:
        steps: the number of updates that are measured.
        folder: the run folder, where `balance.json` is written.

    Raises:
        UserError: a loss has no gradient at the student, or there is nothing to balance against.
    """

    def __init__(self, steps: int, folder: Path) -> None:
        self.steps = steps
        self.folder = folder
        self._sums: defaultdict[str, float] = defaultdict(float)  # of the norms of the unweighted losses' gradients
        self._told = False

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        assert isinstance(module, Distiller)
        objective = module.objective
        self._reference, self._weight = "task", abs(objective.task.weight)
        if self._weight == 0 and objective.terms:
            self._reference = next(iter(objective.terms))
            self._weight = abs(cast(Term, objective.terms[self._reference]).weight)
            if self._weight == 0:
                raise UserError(
                    f"objective.balance=auto balances against the task loss or, if task.weight is 0, against the first "
                    f"loss, but loss.{self._reference}.weight is 0, too. Give one of them a weight."
                )
        self._balanced = [name for name in objective.terms if name != self._reference]

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, Distiller)
        if self._told or not self._balanced:
            return
        weights = self._weights()
        for name, weight in weights.items():
            cast(Term, module.objective.terms[name]).weight = weight
        if trainer.global_step >= self.steps:
            self._tell(trainer, weights)

    def on_before_backward(self, trainer: L.Trainer, module: L.LightningModule, loss: Tensor) -> None:
        if trainer.global_step >= self.steps or not self._balanced:
            return
        assert isinstance(module, Distiller)
        norms = gradient_norms(trainer, module)
        if all(map(math.isfinite, norms.values())):  # otherwise TermMonitor stops the run, or float16 skips the update
            for name, norm in norms.items():
                self._sums[name] += norm

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._balanced and not self._told:  # training had fewer steps
            self._tell(trainer, self._weights())

    def state_dict(self) -> dict[str, Any]:
        return {"sums": dict(self._sums)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._sums.update(state_dict["sums"])

    def _weights(self) -> dict[str, float]:
        """By loss. The number of steps cancels out in the ratio of the sums."""
        wanted = self._weight * self._sums[self._reference]
        sums = {name: self._sums[name] for name in self._balanced}
        return {name: float(f"{wanted / total:.6g}") if total else 0.0 for name, total in sums.items()}

    def _tell(self, trainer: L.Trainer, weights: dict[str, float]) -> None:
        self._told = True
        if silent := [name for name in (self._reference, *self._balanced) if not self._sums[name]]:
            place = "The task loss" if silent[0] == "task" else f"loss.{silent[0]}"
            raise UserError(
                f"objective.balance=auto: {place} has given the student no finite gradient in {self.steps} steps and "
                "cannot be balanced. Leave that loss out, or set the weights yourself with objective.balance=null."
            )
        found = {f"loss.{name}.weight": weight for name, weight in weights.items()}
        if trainer.is_global_zero:
            with atomic_write(self.folder / BALANCE) as unfinished:
                unfinished.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
            if telling():
                overrides = " ".join(f"{path}={weight:g}" for path, weight in found.items())
                say(f"Balanced. The same weights by hand: {overrides}")
