"""A job of which steps are timed: made of its own parts, which then are thrown away."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning as L
import torch

from distillery.config.candidates import with_values
from distillery.config.check import check
from distillery.config.optim import updates
from distillery.config.stages import RunSpec
from distillery.core.process import processes
from distillery.runs.autotune.rule import Timing
from distillery.runs.stages.sequence import StageSequence
from distillery.runs.trainer import make_trainer

LOCAL = {"_target_": "lightning.fabric.plugins.environments.LightningEnvironment"}  # one process, whoever started it


class TooLong(Exception):
    """More time has passed than may."""


class TimedJob:
    """The first stage of a job on one device, with a process's share of the batch.

    Nothing of it is written to the run folder, and nothing is left of it but the timings. The learning rate is
    constant, and the config's callbacks and loggers are left out.

    Args:
        spec: the job, no setting of which is open.

    Attributes:
        steps: of the run; infinite for one without end.
        seconds: that it took to build it and to train the first step.
    """

    def __init__(self, spec: RunSpec) -> None:
        began = now()
        sequence = StageSequence(on_one_device(spec))
        data, trainer = sequence.data(0), sequence.stages[0].cfg.trainer
        updated = updates(data, trainer)[1]
        self.steps = updated / _processes(spec) if updated >= 0 else float("inf")
        sequence.begin()
        self._parts = sequence.parts
        self._first = self._fit(1, validated=trainer.limit_val_batches != 0)[0]
        self._rounds: list[float] = []
        self.seconds = now() - began

    @property
    def timing(self) -> Timing:
        """Of the rounds so far."""
        return Timing(self._first, self._rounds)

    def begin(self) -> None:
        """Forget the rounds so far."""
        self._rounds = []

    def round(self, steps: int) -> float:
        """Time some steps; returns the seconds that one took.

        The step before them is left out: the parameters have moved, and CUDA graphs of them are recorded again.
        """
        self._rounds.append(self._fit(steps + 1, validated=False)[1] / steps)
        return self._rounds[-1]

    def _fit(self, steps: int, validated: bool) -> tuple[float, float]:
        """Train some steps; the seconds from the start to the end of the first one, and those of the others."""
        distiller, cfg = self._parts.distiller, self._parts.cfg.copy()
        cfg.callbacks = {}
        cfg.trainer.update(
            max_steps=steps,
            max_epochs=-1,
            min_steps=None,
            min_epochs=None,
            max_time=None,
            num_sanity_val_steps=int(validated),
            limit_val_batches=int(validated),
            enable_progress_bar=False,
            profiler=None,
            fast_dev_run=False,
            plugins=[*(cfg.trainer.get("plugins") or ()), LOCAL],
        )
        clock = Clock()
        trainer = make_trainer(cfg, [], [clock])
        data = self._parts.data.on(trainer.strategy.root_device)
        began = now()
        trainer.fit(distiller, datamodule=data)
        distiller.cpu()  # the other one's turn: both at once may take more memory than there is
        for teacher in distiller.teachers.values():
            teacher.cpu()
        return clock.first - began, clock.last - clock.first


class Clock(L.Callback):
    """When the first and the last step ended."""

    first = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == 1 and not self.first:
            self.first = now()
        if trainer.global_step == trainer.max_steps:
            self.last = now()


def now() -> float:
    """Seconds, when all is computed."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def on_one_device(spec: RunSpec) -> RunSpec:
    """The job as one of its processes trains it."""
    assert spec.composed is not None
    cfg = spec.cfg
    devices = cfg.trainer.get("devices")
    values = {
        "trainer.devices": 1 if devices is None or isinstance(devices, int | str) else [devices[0]],
        "trainer.num_nodes": 1,
        "trainer.strategy": "auto",
        "trainer.sync_batchnorm": False,
        "data.batch_size": max(1, cfg.data.batch_size // _processes(spec)),
        "optim.scheduler": None,  # its length is that of the run
        "optim.monitor": None,
        "objective.balance": None,  # which searches in the first steps
        "resume": None,
    }
    return check(with_values(spec.composed, values))


def _processes(spec: RunSpec) -> int:
    trainer = spec.cfg.trainer
    return processes(trainer) * int(trainer.get("num_nodes", 1))


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Within: `TooLong` is raised after so many seconds; in the main thread alone, as signals reach no other."""

    def stop(_: int, __: FrameType | None) -> None:
        raise TooLong

    if threading.current_thread() is not threading.main_thread() or seconds == float("inf"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again and again: what compiles may catch one
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
