"""One bar for a whole study."""

import logging
import traceback
import warnings
from contextlib import ExitStack
from typing import Any, Self

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from distillery.core.errors import UserError


class StudyBar:
    """Counts the runs of a study and shows the running one's epoch, loss and score.

    Where the output is no terminal, a line for each finished run instead. A warning is a line that begins with the run
    it is about; Lightning's own remarks are left out.
    """

    def __init__(self, console: Console, runs: int) -> None:
        self._console = console
        self._runs = runs
        self._stack = ExitStack()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[runs]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=runs, runs=f"0/{runs}")
        self._done = 0
        self._label = ""  # of the running run

    def __enter__(self) -> Self:
        lightning = logging.getLogger("lightning.pytorch")
        self._stack.callback(lightning.setLevel, lightning.level)
        lightning.setLevel(logging.ERROR)
        self._stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        warnings.showwarning = self._warn  # `catch_warnings` puts back what was there
        self._stack.enter_context(self._progress)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def follow(self, label: str) -> L.Callback:
        """A callback that moves the bar along a run's epochs."""
        self._label = label
        return _Follow(self, label)

    def skip(self, label: str) -> None:
        """A run that was finished before."""
        self._finish(f"{label}: kept")

    def failed(self, label: str, error: Exception) -> None:
        """A run that ended in an error, told with its traceback unless it is the user's; the study goes on."""
        told = str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error))
        self._console.print(f"{label} failed: {told}", markup=False, highlight=False, soft_wrap=True)
        self._finish(None)

    def finished(self, label: str, score: float | None) -> None:
        """A run that left a complete folder; `score` is its last one on the validation split, if there is one."""
        self._finish(f"{label}: validation score {score:.4f}" if score is not None else label)

    def move(self, text: str, part: float) -> None:
        """The running run has done `part` of its epochs."""
        self._progress.update(self._task, description=text, completed=self._done + part)

    def _warn(self, message: Warning | str, *_: Any, **__: Any) -> None:
        self._console.print(f"{self._label}: {message}", markup=False, highlight=False, soft_wrap=True)

    def _finish(self, line: str | None) -> None:
        self._done += 1
        self._progress.update(self._task, completed=self._done, runs=f"{self._done}/{self._runs}")
        if line and not self._console.is_terminal:
            self._console.print(line, highlight=False)


class _Follow(L.Callback):
    def __init__(self, bar: StudyBar, label: str) -> None:
        self._bar = bar
        self._label = label

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 1
        shown = {key: float(value) for key, value in trainer.progress_bar_metrics.items()}
        figures = "".join(f"  {key.removeprefix('val/')} {value:.3f}" for key, value in shown.items())
        self._bar.move(f"{self._label}  epoch {epoch}/{epochs}{figures}", epoch / epochs)
