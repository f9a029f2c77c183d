"""What tells apart the runs of one method: the settings that differ between them, as a sweep varies them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from distillery.results.report.collect import Run


def labelled(runs: Sequence[Run]) -> list[Run]:
    """The runs with the label of their row: the method, and the settings in which it differs from its other runs.

    `kd` where all runs of the method have the same settings; otherwise `kd temperature=2`. Seeds are not settings, nor
    is what follows from the seed alone, such as a teacher that each seed has of its own.
    """
    by_method: dict[str, list[Run]] = {}
    for run in runs:
        by_method.setdefault(run.record.method, []).append(run)
    differing = {method: _differing(own) for method, own in by_method.items()}
    return [replace(run, label=_label(run, differing[run.record.method])) for run in runs]


def same_settings(run: Run, others: Sequence[Run]) -> list[Run]:
    """Those of `others`, the runs of several settings, that agree with `run` in all settings that tell them apart."""
    keys = _differing(others)
    return [other for other in others if all(_value(other, key) == _value(run, key) for key in keys)]


def _differing(runs: Sequence[Run]) -> list[str]:
    """The settings in which the runs differ, but for those that are one for each seed, each of another."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    found = [key for key in keys if len({repr(_value(run, key)) for run in runs}) > 1 and not _follows_seed(runs, key)]
    # a stage holds a whole config of its own, in which the root's settings stand again
    return [key for key in found if not (key.startswith("stages.") and key.partition(".config.")[2] in found)]


def _follows_seed(runs: Sequence[Run], key: str) -> bool:
    by_seed: dict[int, set[str]] = {}
    for run in runs:
        by_seed.setdefault(run.record.seed, set()).add(repr(_value(run, key)))
    return key.endswith(("seed", ".weights", ".source")) and all(len(values) == 1 for values in by_seed.values())


def _label(run: Run, keys: Sequence[str]) -> str:
    return " ".join([run.record.method, ", ".join(_shown(run, key, keys) for key in keys)]).rstrip()


def _shown(run: Run, key: str, keys: Sequence[str]) -> str:
    """`temperature=2`; more of the path where two settings end alike."""
    parts = key.split(".")
    ends = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
    name = next(end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1)
    value = _value(run, key)
    return f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"


def _value(run: Run, key: str) -> Any:
    return run.settings.get(key)
