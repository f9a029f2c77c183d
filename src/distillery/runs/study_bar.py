"""One progress bar for a whole study."""

import logging
import traceback
import warnings
from contextlib import ExitStack
from typing import Any, Self

import lightning as L
from lightning.pytorch.callbacks import LambdaCallback
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from distillery.core.errors import UserError
from distillery.core.terminal import hushed, say
from distillery.runs.progress_lines import ProgressLines


class StudyBar:
    """Counts the runs of a study and shows epoch, loss and score of the one that is running.

    Where the output is not a terminal, it prints a line for each finished run instead, and one a minute for the run
    that is under way. Warnings are printed as lines that start with the run they are about, each text once; Lightning's
    own remarks are suppressed.
    """

    def __init__(self, console: Console, runs: int) -> None:
        self._console = console
        self._runs = runs
        self._stack = ExitStack()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[runs]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=runs, runs=f"0/{runs}")
        self._done = 0
        self._label = ""  # of the current run
        self._warned: set[str] = set()

    def __enter__(self) -> Self:
        lightning = logging.getLogger("lightning.pytorch")
        self._stack.callback(lightning.setLevel, lightning.level)
        lightning.setLevel(logging.ERROR)
        self._stack.enter_context(hushed())
        self._stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        warnings.showwarning = self._warn  # `catch_warnings` puts back what was there
        self._stack.enter_context(self._progress)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def follow(self, label: str) -> L.Callback:
        """A callback that shows how far a run is."""
        self._label = label
        if not self._console.is_terminal:
            return ProgressLines(f"{self._done + 1}/{self._runs} {label}", self._console)
        return LambdaCallback(on_train_epoch_end=self._show_epoch)

    def failed(self, label: str, error: Exception) -> None:
        """Count a run that ended in an error, and print it: with its traceback unless the user can fix it."""
        message = str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error))
        say(f"{label} failed: {message}", self._console)
        self.done()

    def done(self, line: str = "") -> None:
        """Count a run; where the output is not a terminal, print the line."""
        self._done += 1
        self._progress.update(self._task, completed=self._done, runs=f"{self._done}/{self._runs}")
        if line and not self._console.is_terminal:
            say(line, self._console)

    def _show_epoch(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 1
        shown = {key: float(value) for key, value in trainer.progress_bar_metrics.items()}
        figures = "".join(f"  {key.removeprefix('val/')} {value:.3f}" for key, value in shown.items())
        text = f"{self._label}  epoch {epoch}/{epochs}{figures}"
        self._progress.update(self._task, description=text, completed=self._done + epoch / epochs)

    def _warn(self, message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) in self._warned:
            return
        self._warned.add(str(message))
        say(f"{self._label}: {message}", self._console)
