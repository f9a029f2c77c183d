"""Progressive distillation: several stages in one fit, each with its own teacher, student, losses and data."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from distillery.core.errors import UserError
from distillery.core.terminal import say
from distillery.data.module import Data
from distillery.runs.stages.sequence import StageSequence
from distillery.training.distiller import Distiller


@dataclass
class Position:
    """Where a run with stages is: state, in each checkpoint.

    Attributes:
        place: the number of the stage, from 0 on.
        epoch, step: at which it began.
        best, waited: of a stage that waits for a metric: its best value, and how many validations ago that was.
        students: SHA-256 of what finished stages have left, by stage.
    """

    place: int = 0
    epoch: int = 0
    step: int = 0
    best: float | None = None
    waited: int = 0
    students: dict[str, str] = field(default_factory=dict)

    @classmethod
    def saved(cls, checkpoint: Path | None) -> Self:
        """That in a checkpoint; the beginning, if there is none."""
        if checkpoint is None:
            return cls()
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["callbacks"]
        return cls(**state.get(ProgressiveDistillation.__qualname__, {}))


class ProgressiveDistillation(L.Callback):
    """Trains the stages of a sequence one after the other, in one fit.

    A stage ends with an epoch; before the next one the student of the stage is written to the run folder, the parts
    of the next stage take its place, and the strategy is set up anew: it wraps what is trained now, and makes new
    optimizers. Checkpoints by a metric begin anew: the best student is one of the last stage. Callbacks that have
    `on_stage_end(trainer, module)` hear of a stage's end, those with `on_stage_start` of the next one's beginning.

    Args:
        sequence: begun at the position.
        position: where the fit starts.
    """

    def __init__(self, sequence: StageSequence, position: Position) -> None:
        self.sequence = sequence
        self.position = position
        self.ended = not sequence.several  # whether what stops the fit ends the run

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        assert isinstance(module, Distiller)
        self._tell(module)

    def data(self, epoch: int) -> Data:
        """What the epoch with this number, from 0 on, is trained on."""
        last = len(self.sequence.stages) - 1
        return self.sequence.data(min(last, self.sequence.place + self._is_over(epoch)))

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.on_train_epoch_start(trainer, module)  # which a fit that resumes in mid-epoch does not call

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, Distiller)
        if self._is_over(trainer.current_epoch) and not self._is_last:
            self._enter_next(trainer, module)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        until = self.sequence.stage.until
        if until is None or trainer.sanity_checking:
            return
        if until.metric not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics))
            raise UserError(f"stages.{self.sequence.stage.name}.until.metric={until.metric}: there are {known}.")
        value = float(trainer.callback_metrics[until.metric])
        better = not math.isnan(value) and until.better(value, self.position.best)
        self.position.best = value if better else self.position.best
        self.position.waited = 0 if better else self.position.waited + 1

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for logger in trainer.loggers:
            logger.log_metrics({"stage": self.sequence.place}, step=trainer.global_step)
        if self._is_last and self._is_over(trainer.current_epoch + 1):
            self.ended = trainer.should_stop = True

    def refuse_unfinished(self, epochs: int) -> None:
        """After a fit of so many epochs: something else than the last stage's end may have stopped it.

        Raises:
            UserError: the student is not the one that the run was to end with.
        """
        stages, place = self.sequence.stages, self.sequence.place
        if not self._is_last or not self._is_over(epochs):
            raise UserError(
                f"The training was stopped in stage {stages[place].name!r}, {place + 1} of {len(stages)}, after "
                f"{epochs} epochs in all, by trainer.max_time or a callback. The student of the whole run is not there "
                f"yet; resume={self.sequence.folder} goes on."
            )

    def state_dict(self) -> dict[str, Any]:
        return asdict(self.position)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position = Position(**state_dict)

    @property
    def state_key(self) -> str:
        return type(self).__qualname__

    @property
    def _is_last(self) -> bool:
        return self.sequence.place == len(self.sequence.stages) - 1

    def _is_over(self, epoch: int) -> bool:
        """Whether the stage has ended when so many epochs of the run are done."""
        until = self.sequence.stage.until
        done = epoch - self.position.epoch
        return done >= self.sequence.epochs(self.sequence.place) or (
            until is not None and self.position.waited >= until.patience
        )

    def _tell(self, module: Distiller) -> None:
        module.stage, module.stage_start_step = self.sequence.stage.name, self.position.step
        module.stage_teachers = frozenset(self.sequence.own_teachers())

    def _enter_next(self, trainer: L.Trainer, module: Distiller) -> None:
        _call("on_stage_end", trainer, module)
        losses = self.sequence.advance(trainer.is_global_zero, lambda: trainer.strategy.barrier("stage"))
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
        if trainer.is_global_zero and trainer.progress_bar_callback is not None:
            name, count = self.sequence.stage.name, len(self.sequence.stages)
            say(f"Stage {self.sequence.place + 1} of {count}: {name}")


class StagedData(L.LightningDataModule):
    """The data of whatever stage is trained: what the trainer asks for loaders."""

    def __init__(self, progress: ProgressiveDistillation) -> None:
        super().__init__()
        self.progress = progress

    @property
    def now(self) -> Data:
        assert self.trainer is not None
        return self.progress.data(self.trainer.current_epoch)

    @property
    def fingerprint(self) -> str:
        return self.now.fingerprint

    def train_dataloader(self) -> Any:
        return self.now.train_dataloader()

    def val_dataloader(self) -> Any:
        return self.now.val_dataloader()


def _call(hook: Literal["on_stage_end", "on_stage_start"], trainer: L.Trainer, module: Distiller) -> None:
    """As Lightning calls its own hooks, of the callbacks that have this one."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if heard := getattr(callback, hook, None):
            heard(trainer, module)


def _begin_anew(checkpoint: ModelCheckpoint, trainer: L.Trainer) -> None:
    """Let it forget the students of the stage before, and remove their files."""
    for path in checkpoint.best_k_models:
        trainer.strategy.remove_checkpoint(path)
    checkpoint.best_k_models.clear()
    checkpoint.kth_best_model_path = checkpoint.best_model_path = ""
    checkpoint.best_model_score = checkpoint.current_score = None
