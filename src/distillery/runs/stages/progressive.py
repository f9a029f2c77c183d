"""Progressive distillation: several stages in one fit, each with its own teacher, student, losses and data."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from distillery.config.stages import stage_teachers
from distillery.core.errors import UserError
from distillery.core.terminal import say, telling
from distillery.data.module import Data
from distillery.runs.stages.sequence import StageSequence
from distillery.training.distiller import Distiller


@dataclass
class Position:
    """How far a run with stages has come; part of each checkpoint.

    Attributes:
        place: the number of the stage, from 0 on.
        epoch, step: the epoch and the update that it began with.
        best, waited: the best value of the metric that the stage waits for, and how many validations ago that was.
        students: SHA-256 of the student files that finished stages have left, by stage.
    """

    place: int = 0
    epoch: int = 0
    step: int = 0
    best: float | None = None
    waited: int = 0
    students: dict[str, str] = field(default_factory=dict)

    @classmethod
    def saved(cls, checkpoint: Path | None) -> Self:
        """The position in a checkpoint; without one, the beginning of the run."""
        if checkpoint is None:
            return cls()
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["callbacks"]
        return cls(**state.get(ProgressiveDistillation.__qualname__, {}))


class ProgressiveDistillation(L.Callback):
    """Trains the stages of a sequence one after the other, in one fit.

    A stage ends at the end of an epoch. Before the next epoch, its student is written to the run folder, the module is
    given the parts of the next stage, and the strategy is set up again, so that it wraps the new parts and makes new
    optimizers. Checkpoints by a metric forget earlier stages: the best student is one of the last stage. Callbacks may
    have the hooks `on_stage_end(trainer, module)` and `on_stage_start(trainer, module)`.

    Args:
        sequence: the stages; the parts of the one at `position` are built.
        position: where the fit starts.
    """

    def __init__(self, sequence: StageSequence, position: Position) -> None:
        self.sequence = sequence
        self.position = position
        self.ended = not sequence.several  # whether the run has ended when the fit stops

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        assert isinstance(module, Distiller)
        self._tell(module)

    def data(self, epoch: int) -> Data:
        """The training data of an epoch; the first one has the number 0."""
        return self.sequence.data(self.sequence.place + self._next_begins(epoch))

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.on_train_epoch_start(trainer, module)  # a fit that resumes in mid-epoch does not call it

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, Distiller)
        if self._next_begins(trainer.current_epoch):
            self._enter_next(trainer, module)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, Distiller)
        until = self.sequence.stage.until
        if until is None or trainer.sanity_checking:
            return
        if until.metric not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics))
            raise UserError(
                f"stages.{self.sequence.stage.name}.until.metric={until.metric}: no such metric is logged. "
                f"Choose from: {known}."
            )
        value = float(trainer.callback_metrics[until.metric])
        better = not math.isnan(value) and until.better(value, self.position.best, module.task.higher_is_better)
        self.position.best = value if better else self.position.best
        self.position.waited = 0 if better else self.position.waited + 1

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for logger in trainer.loggers:
            logger.log_metrics({"stage": self.sequence.place}, step=trainer.global_step)
        if self.sequence.is_last and self._is_over(trainer.current_epoch + 1):
            self.ended = trainer.should_stop = True

    def refuse_unfinished(self, epochs: int) -> None:
        """Raise UserError unless the last stage has come to its end after this many epochs of the run."""
        stages, place = self.sequence.stages, self.sequence.place
        if not self.sequence.is_last or not self._is_over(epochs):
            raise UserError(
                f"The training was stopped in stage {stages[place].name!r}, {place + 1} of {len(stages)}, after "
                f"{epochs} epochs in all, by trainer.max_time or a callback. The run is not finished: resume it with "
                f"resume={self.sequence.folder}."
            )

    def state_dict(self) -> dict[str, Any]:
        return asdict(self.position)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position = Position(**state_dict)

    def _next_begins(self, epoch: int) -> bool:
        """Whether the next stage, if there is one, begins with this epoch of the run."""
        return self._is_over(epoch) and not self.sequence.is_last

    def _is_over(self, epochs: int) -> bool:
        """Whether the stage has ended after this many epochs of the run."""
        stage = self.sequence.stage
        waited = stage.until is not None and self.position.waited >= stage.until.patience
        return waited or epochs - self.position.epoch >= stage.cfg.trainer.max_epochs

    def _tell(self, module: Distiller) -> None:
        module.stage = self.sequence.stage.name
        module.stage_start_epoch, module.stage_start_step = self.position.epoch, self.position.step
        module.stage_teachers = frozenset(stage_teachers(self.sequence.stage.cfg))

    def _enter_next(self, trainer: L.Trainer, module: Distiller) -> None:
        _call("on_stage_end", trainer, module)
        losses = self.sequence.advance(wait=lambda: trainer.strategy.barrier("stage"))
        self.position = Position(
            self.sequence.place, trainer.current_epoch, trainer.global_step, students=self.sequence.students
        )
        module.replace_parts(self.sequence.parts.distiller, losses)
        self._tell(module)
        trainer.strategy.connect(module)  # without what it had wrapped around
        module.configure_model()
        trainer.strategy.setup(trainer)
        module.on_fit_start()
        for checkpoint in trainer.checkpoint_callbacks:
            if isinstance(checkpoint, ModelCheckpoint) and checkpoint.monitor is not None:
                _begin_anew(checkpoint, trainer)
        _call("on_stage_start", trainer, module)
        if trainer.is_global_zero and telling():
            name, count = self.sequence.stage.name, len(self.sequence.stages)
            say(f"Stage {self.sequence.place + 1} of {count}: {name}")


class StagedData(L.LightningDataModule):
    """The data of the stage that is being trained."""

    def __init__(self, progress: ProgressiveDistillation) -> None:
        super().__init__()
        self.progress = progress

    @property
    def now(self) -> Data:
        assert self.trainer is not None
        return self.progress.data(self.trainer.current_epoch).on(self.trainer.strategy.root_device)

    def train_dataloader(self) -> Any:
        return self.now.train_dataloader()

    def val_dataloader(self) -> Any:
        return self.now.val_dataloader()


def _call(hook: Literal["on_stage_end", "on_stage_start"], trainer: L.Trainer, module: Distiller) -> None:
    """Call the hook of those callbacks that have it."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if heard := getattr(callback, hook, None):
            heard(trainer, module)


def _begin_anew(checkpoint: ModelCheckpoint, trainer: L.Trainer) -> None:
    """Make a checkpoint callback forget the students of the stage before, and remove their files."""
    for path in checkpoint.best_k_models:
        trainer.strategy.remove_checkpoint(path)
    checkpoint.best_k_models.clear()
    checkpoint.kth_best_model_path = checkpoint.best_model_path = ""
    checkpoint.best_model_score = checkpoint.current_score = None
