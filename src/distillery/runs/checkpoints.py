"""Checkpoints that survive a kill at any moment, and the one that a run is resumed from."""

import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from distillery.core.errors import UserError
from distillery.core.files import atomic_write
from distillery.data.loader import ResumableLoader
from distillery.results.layout import BEFORE_LAST, CHECKPOINTS, LAST
from distillery.teachers.served_client import ServerError


class WholeCheckpoints(TorchCheckpointIO):
    """Writes checkpoints atomically, and keeps the one before the last.

    Once there is a checkpoint, there is always a complete one: the new file is on the disk before the last one is
    renamed, and only then takes its name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        former = path.with_name(BEFORE_LAST) if path.name == LAST else None
        with atomic_write(path, former) as unfinished, unfinished.open("wb") as file:
            torch.save(checkpoint, file)


class LastCheckpoint(ModelCheckpoint):
    """Saves so that a resumed run skips nothing.

    A checkpoint that is due after the last batch of an epoch (`every_n_train_steps`) is written when the epoch ends.
    From one written before that, Lightning would continue with the next epoch and skip this epoch's validation.
    """

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, *args)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        super().on_train_batch_end(trainer, pl_module, None, None, 0)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Save the run as it was before a step for which a teacher's server gave no signals: nothing is lost.

        Not in the middle of an update, whose gradients no checkpoint has, nor with several processes, which would have
        to save together.
        """
        loader, steps = trainer.train_dataloader, trainer.fit_loop.epoch_loop.batch_progress.current
        within = steps.completed % trainer.accumulate_grad_batches or steps.ready == steps.completed
        if not isinstance(exception, ServerError) or not isinstance(loader, ResumableLoader) or within:
            return
        if trainer.world_size == 1 and self.dirpath is not None:
            loader.sampler.served -= 1  # the batch of that step
            trainer.save_checkpoint(Path(self.dirpath) / LAST)


class Resumption(L.Callback):
    """Restores what Lightning loses when a run is resumed.

    - Whether a callback has stopped the run: otherwise it would train for one more epoch.
    - The current score of the best checkpoint, which loggers show.
    - If the folder has been moved, the best checkpoint itself: otherwise the next one would replace it, however bad.

    Args:
        ended: whether a run that is stopped now has come to its end.
    """

    def __init__(self, ended: Callable[[], bool]) -> None:
        self._ended = ended

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["stopped"] = trainer.should_stop and self._ended()

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        trainer.should_stop = checkpoint["stopped"]
        states = checkpoint["callbacks"]
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and (state := states.get(callback.state_key)):
                states[callback.state_key] = moved(state, state["dirpath"], str(callback.dirpath))
                callback.current_score = state["current_score"]


def moved(value: Any, old: str, new: str) -> Any:
    """`value` with every path in the folder `old` replaced by the same in `new`."""
    if isinstance(value, dict):
        return {moved(key, old, new): moved(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [moved(item, old, new) for item in value]
    inside = isinstance(value, str) and Path(value).is_relative_to(old)
    return str(Path(new) / Path(value).relative_to(old)) if inside else value


def written_checkpoints(run: Path) -> list[Path]:
    """The checkpoints in a run folder from which it may be resumed, damaged or not, the last one first."""
    return [path for name in (LAST, BEFORE_LAST) if (path := run / CHECKPOINTS / name).is_file()]


def last_checkpoint(run: Path) -> Path | None:
    """The checkpoint to resume the run in the folder `run` from: the last undamaged one; None if there is none yet.

    Warns if that is not the last one that was written.

    Raises:
        UserError: there are checkpoints, but all are damaged.
    """
    found = written_checkpoints(run)
    damages = {path: damage for path in found if (damage := _damage(path))}
    whole = next((path for path in found if path not in damages), None)
    said = " and ".join(f"{path.name} is torn ({damage})" for path, damage in damages.items())
    if damages and whole is None:
        raise UserError(
            f"{run} cannot be resumed: {said}. Put back a copy of a checkpoint, or remove {run / CHECKPOINTS} to start "
            "the run again from its first step."
        )
    if whole is None:
        warnings.warn(f"{run} has no {CHECKPOINTS}/{LAST} yet: the run starts again from its beginning.", stacklevel=2)
    elif whole.name != LAST:
        step = torch.load(whole, map_location="cpu", weights_only=True, mmap=True)["global_step"]
        said = said or f"{LAST} is missing"
        warnings.warn(f"{run}: {said}; resuming from {whole.name}, step {step}.", stacklevel=2)
    return whole


def _damage(path: Path) -> str | None:
    """What is wrong with a file of `torch.save`, each part of which has a checksum; None if it is undamaged."""
    try:
        with zipfile.ZipFile(path) as file:
            broken = file.testzip()
    except Exception as error:  # damaged headers raise many kinds of errors
        return f"{path.stat().st_size} bytes, {error}"
    return f"{path.stat().st_size} bytes, wrong checksum of {broken}" if broken else None
