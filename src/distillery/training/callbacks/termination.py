"""Ends a run on SIGTERM, which `kill`, `timeout`, stopped containers and a cluster's time limit send."""

import signal
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import lightning as L
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from distillery.core.process import is_main

EXIT_CODE = 128 + signal.SIGTERM  # the exit code of a process that the signal has ended, in a shell


class Termination(L.Callback):
    """A context in which SIGTERM ends the run as Ctrl-C does, with `EXIT_CODE`, and the record says why.

    Lightning's own handler, which each fit installs, notes the signal and continues; with several ranks it then waits
    for a broadcast that the others do not expect. It is replaced before the first step: this must be the trainer's
    first callback. Ranks other than the first end at once, as without a handler; the first one writes the record.

    In a SLURM batch job Lightning's handlers stay, which requeue the job. So do the handlers of a program that calls
    `train` in a thread other than the main one, where Python cannot set any.

    Args:
        folder: the run folder, for the message.

    Raises:
        SystemExit: in the main thread, wherever it is. Its context is an `InterruptedError` that says why.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stopping = False
        self._replaces = threading.current_thread() is threading.main_thread() and not SLURMEnvironment.detect()

    def __enter__(self) -> Self:
        self._former = signal.getsignal(signal.SIGTERM)
        self._set()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._replaces:
            signal.signal(signal.SIGTERM, self._former or signal.SIG_DFL)  # None: it was not set from Python
        if self._stopping and error is not None:
            print(f"Stopped by SIGTERM: {self._folder}", file=sys.stderr)

    def on_train_start(self, *_: Any) -> None:
        self._set()

    def on_train_batch_start(self, *_: Any) -> None:
        if self._stopping:  # the run continues although it was stopped: Python drops exceptions raised in a `__del__`
            _stop()

    def _set(self) -> None:
        if self._replaces:
            signal.signal(signal.SIGTERM, self._received if is_main() else signal.SIG_DFL)

    def _received(self, *_: Any) -> None:
        if not self._stopping:  # `timeout` sends it twice; the second must not disturb how the run ends
            self._stopping = True
            _stop()


def _stop() -> NoReturn:
    try:
        raise InterruptedError("SIGTERM from outside: kill, a time limit or a shutdown, not an error of the run")
    except InterruptedError:
        sys.exit(EXIT_CODE)
