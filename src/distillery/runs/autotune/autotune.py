"""Gives settings that are `auto` their values before a run: times a few steps of the job, and keeps what pays.

The settings are tried one after the other, each beside what was kept before it. What is chosen becomes part of the
config, as if the user had set it, and nothing else of the timing is left: networks, random numbers and data of the run
are made anew. A share of the time of the run bounds that of the timing.
"""

import gc
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng

from distillery.config.candidates import COMPILE, first_values
from distillery.config.check import decided
from distillery.config.check_strategy import is_fsdp2
from distillery.config.stages import RunSpec
from distillery.core.errors import UserError
from distillery.core.kinds import shown
from distillery.core.terminal import hushed, say, telling
from distillery.runs.autotune.rule import Tried
from distillery.runs.autotune.shared import shared
from distillery.runs.autotune.table import show, show_taken
from distillery.runs.autotune.timed_job import TimedJob, within
from distillery.runs.job import Job
from distillery.runs.ranks import of_first_rank

SHARE = 0.05  # of the time of the run, that the timing may take
ROUNDS = 5  # in which the job without and with a setting is timed in turn
SHORT, MANY = 0.2, 50  # a round has steps for so many seconds, and not more steps than this
COMPILATION = 10.0  # seconds that it takes at least


def autotune(job: Job) -> None:
    """Give the settings of a job that are `auto` their values: those of its study or sweep, or else those that pay.

    Of several ranks the first one times. Nothing of the run is changed but its config, and no error ends it.
    """
    if job.spec.open:
        found = of_first_rank(job.cfg, lambda: shared(job, tried))
        job.spec, job.autotune = decided(job.spec, found["choice"]), found
    elif job.autotune:
        show_taken(job.autotune, "this run before")


def tried(spec: RunSpec) -> dict[str, Any]:
    """Try the values of all settings that are open, and show what came of it; see `RunRecord.autotune`."""
    began = time.perf_counter()
    search = Search(spec, say if telling() else lambda _: None)
    with isolate_rng(), hushed(), warnings.catch_warnings(action="ignore"):
        found = search.found()
    del search
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    found |= {"seconds": round(time.perf_counter() - began, 3)}
    show(found)
    return found


class Search:
    """The search for the values that pay.

    Args:
        spec: the job.
        tell: is given a line for each value that is timed.
    """

    def __init__(self, spec: RunSpec, tell: Callable[[str], None]) -> None:
        self._spec, self._tell = spec, tell
        self._choice = first_values(spec.open)

    def found(self) -> dict[str, Any]:
        """What was chosen, and why, but for the `seconds` that it took; see `RunRecord.autotune`."""
        try:
            if is_fsdp2(self._spec.cfg.trainer.get("strategy")):
                raise UserError("Parameters that are sharded across processes cannot be timed on one.")
            self._best = TimedJob(decided(self._spec, self._choice))
            self._step = self._best.round(1)
        except Exception as error:  # if the job fails as it is, the run will say so
            return {"choice": self._choice, "tried": [], "note": f"Nothing was timed: {_reason(error)}"}
        self._ends = time.perf_counter() + SHARE * self._best.steps * self._step
        self._steps = min(MANY, math.ceil(SHORT / self._step))
        values = [(name, value) for name, values in self._spec.open.items() for value in values[1:]]
        entries = [asdict(self._try(name, value)) for name, value in values]
        steps = None if math.isinf(self._best.steps) else round(self._best.steps)
        timed = {"steps": steps, "rounds": ROUNDS, "steps_per_round": self._steps}
        return {"choice": self._choice, "tried": entries, **timed}

    def _try(self, name: str, value: Any) -> Tried:
        """Time the job with this value beside the best so far, which it becomes if it pays."""
        setting = f"{name}={shown(value)}"
        left = self._ends - time.perf_counter()
        bound = f"{max(0, left):,.1f} s are left of {SHARE:.0%} of the run"
        takes = (
            self._best.seconds + 2 * ROUNDS * (self._steps + 1) * self._step + (COMPILATION if name == COMPILE else 0)
        )
        if takes > left:
            return Tried(setting, False, f"not tried: it takes {takes:,.1f} s or more, {bound}")
        self._tell(f"Timing {setting} …")
        choice = {**self._choice, name: value}
        try:
            with within(left):
                job = TimedJob(decided(self._spec, choice))
                self._best.begin()
                for _ in range(ROUNDS):
                    self._best.round(self._steps)
                    job.round(self._steps)
        except Exception as error:
            late = time.perf_counter() > self._ends  # the compiler has errors of its own for what ends it
            return Tried(
                setting, False, f"stopped: it took too long, {bound}" if late else f"left out: {_reason(error)}"
            )
        entry = Tried.timed(setting, self._best.timing, job.timing, job.steps)
        if entry.kept:
            self._best, self._choice = job, choice
        return entry


def _reason(error: Exception) -> str:
    """The first line of its message, or what it is."""
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return first if isinstance(error, UserError) else f"{type(error).__name__}: {first}"[:200]
