"""What tells apart the runs of one method: the settings that differ between them, as a sweep varies them."""

from collections.abc import Sequence
from dataclasses import replace

from distillery.results.report.collect import Run


def labelled(runs: Sequence[Run]) -> list[Run]:
    """The runs with the label of their row: the method, and the settings in which it differs from its other runs.

    `kd` where all runs of the method have the same settings; otherwise `kd temperature=2`. Seeds are not settings, nor
    is what follows from the seed alone, such as a teacher that each seed has of its own.
    """
    by_method: dict[str, list[Run]] = {}
    for run in runs:
        by_method.setdefault(run.record.method, []).append(run)
    keys = {method: differing(own) for method, own in by_method.items()}
    return [replace(run, label=_label(run, keys[run.record.method])) for run in runs]


def differing(runs: Sequence[Run]) -> list[str]:
    """The settings in which the runs differ, but for those that are one for each seed, each of another."""
    found = []
    for key in dict.fromkeys(key for run in runs for key in run.settings):
        by_seed: dict[int, set[str]] = {}
        for run in runs:
            by_seed.setdefault(run.record.seed, set()).add(repr(run.settings.get(key)))
        follows_seed = key.endswith(("seed", ".weights", ".source")) and max(map(len, by_seed.values())) == 1
        if len(set.union(*by_seed.values())) > 1 and not follows_seed:
            found.append(key)
    # a stage holds a whole config of its own, in which the root's settings stand again
    return [key for key in found if not (key.startswith("stages.") and key.partition(".config.")[2] in found)]


def _label(run: Run, keys: Sequence[str]) -> str:
    return " ".join([run.record.method, ", ".join(_shown(run, key, keys) for key in keys)]).rstrip()


def _shown(run: Run, key: str, keys: Sequence[str]) -> str:
    """`temperature=2`; more of the path where two settings end alike."""
    parts = key.split(".")
    ends = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
    name = next(end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1)
    value = run.settings.get(key)
    return f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
