"""What was found for settings that are `auto`, for all jobs of a study or sweep that take as long.

They are those whose configs differ in nothing but the seed and numbers of losses, schedules and optimizer, on the same
kind of device. The file `autotune.json` in the folder of the study or sweep holds it, so that a study that was stopped
goes on with it.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from filelock import FileLock

from distillery.config.stages import RunSpec
from distillery.core.files import atomic_write
from distillery.results.environment import environment
from distillery.results.layout import AUTOTUNE
from distillery.results.record import computed_settings, config_hash, finite
from distillery.runs.autotune.table import show_taken
from distillery.runs.job import Job, plain

SEEDS = ("seed", "subset_seed", "views_seed")  # at any depth
NUMBERS = ("loss", "task", "optim", "objective", "rollouts", "stages")  # the numbers in these do not count
BESIDE = ("callbacks", "min_teacher_score", "ensemble")  # nor do these at all


def shared(job: Job, find: Callable[[RunSpec], dict[str, Any]]) -> dict[str, Any]:
    """What an earlier job of the study or sweep has found, or else `find(job.spec)`."""
    if job.group is None:
        return find(job.spec)
    path, key = job.group / AUTOTUNE, timed_alike(job)
    job.group.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{AUTOTUNE}.lock")):  # jobs may run side by side
        known: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if key in known:
            show_taken(known[key], f"an earlier job, {path}")
        else:
            known[key] = find(job.spec)
            with atomic_write(path) as unfinished:
                unfinished.write_text(json.dumps(finite(known), indent=2) + "\n", encoding="utf-8")
        return known[key]


def timed_alike(job: Job) -> str:
    """SHA-256 of what the time of a step depends on."""
    settings = {key: value for key, value in computed_settings(plain(job.cfg)).items() if key not in BESIDE}
    settings = {key: _without_numbers(value) if key in NUMBERS else value for key, value in settings.items()}
    open_settings = {name: list(values) for name, values in job.spec.open.items()}
    machine = {key: value for key, value in environment().items() if key in ("cpu", "threads", "gpu", "packages")}
    return config_hash({"settings": _without_seeds(settings), "open": open_settings, "machine": machine})


def _without_seeds(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_seeds(item) for key, item in value.items() if key not in SEEDS}
    return value


def _without_numbers(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_numbers(item) for item in value]
    return None if isinstance(value, int | float) and not isinstance(value, bool) else value
