"""How far a run is, where the output is no terminal on which a bar could move."""

import time
from datetime import timedelta
from typing import Any

import lightning as L
from rich.console import Console

from distillery.core.terminal import plain_console, say

FIRST, EVERY = 10.0, 60.0  # seconds until the first line, and between lines


class ProgressLines(L.Callback):
    """Prints a line now and then: epoch, step, loss, score and the time that is left.

    Args:
        label: what the line begins with.
    """

    def __init__(self, label: str = "", console: Console | None = None) -> None:
        self._label = f"{label}: " if label else ""
        self._console = console or plain_console()

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._start = time.monotonic()
        self._due = self._start + FIRST
        self._done = done(trainer)  # a resumed run does not begin at 0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        now = time.monotonic()
        if now < self._due or not trainer.is_global_zero:
            return
        self._due = now + EVERY
        share = done(trainer)
        place = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}, step {trainer.global_step:,}"
        figures = [f"{key} {float(value):.3f}" for key, value in trainer.progress_bar_metrics.items()]
        if share > self._done:  # not before the first update of accumulated gradients
            left = (now - self._start) * (1 - share) / (share - self._done)
            figures.append(f"{timedelta(seconds=round(left))} left")
        say(self._label + ", ".join([place, *figures]), self._console)


def done(trainer: L.Trainer) -> float:
    """The share of the run's updates that are done."""
    return trainer.global_step / trainer.estimated_stepping_batches
