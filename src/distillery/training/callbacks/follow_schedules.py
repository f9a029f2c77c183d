"""Sets the numbers that have a schedule before each training step."""

import math
from typing import Any

import lightning as L

from distillery.training.distiller import Distiller
from distillery.training.schedules import Latch, Progress


class FollowSchedules(L.Callback):
    """The numbers are functions of the updates done in the stage, so that a resumed run continues with the same values.

    Which schedules have met the condition on their metric is state, and saved in the checkpoint. Metrics are read after
    each validation.
    """

    def __init__(self) -> None:
        self._met: set[str] = set()

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, Distiller)
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        module.objective.follow(Progress(trainer.global_step - module.stage_start_step, steps), self._met)

    def on_stage_end(self, trainer: L.Trainer, module: Distiller) -> None:
        self._met.clear()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, Distiller)
        if not trainer.sanity_checking:
            for path, schedule in module.objective.schedules.items():
                if isinstance(schedule, Latch) and schedule.passed(float(trainer.callback_metrics[schedule.metric])):
                    self._met.add(path)

    def state_dict(self) -> dict[str, Any]:
        return {"met": sorted(self._met)} if self._met else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._met = set(state_dict["met"])
