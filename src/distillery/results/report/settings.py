"""What tells apart the runs of one method: the settings that differ between them, as a sweep varies them."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace

from distillery.results.record import NOT_IDENTITY
from distillery.results.report.collect import Run


def labelled(runs: Sequence[Run]) -> list[Run]:
    """The runs with the label of their row: the method, and the settings in which it differs from its other runs.

    `kd` where all runs of the method have the same settings; otherwise `kd temperature=2`, and `kd student=cifar` for
    all the settings that this choice of a config group stands for. Seeds are not settings, nor is what follows from the
    seed alone, such as a teacher that each seed has of its own.
    """
    by_method: dict[str, list[Run]] = {}
    for run in runs:
        by_method.setdefault(run.record.method, []).append(run)
    named = {method: _named(own) for method, own in by_method.items()}
    return [replace(run, label=_label(run, named[run.record.method])) for run in runs]


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


def _named(runs: Sequence[Run]) -> list[str]:
    """What a label says: the differing settings, but for those that follow from a choice of the command line.

    They are in the order of the command line, as a sweep and its trials have them.
    """
    left, found = differing(runs), []
    for key in dict.fromkeys(key for run in runs for key in _choices(run)):
        options = [_choices(run).get(key) for run in runs]
        others = [each for each in left if None in options or not _follows(each, options, runs)]
        if others != left:
            found.append(key)
            left = others
    given = [override.lstrip("+").partition("=")[0] for run in runs for override in run.record.overrides]
    return sorted([*found, *left], key=lambda key: given.index(key) if key in given else len(given))


def _follows(key: str, options: Sequence[str | None], runs: Sequence[Run]) -> bool:
    """Whether runs with the same option have the same value of the setting."""
    values = [repr(run.settings.get(key)) for run in runs]
    return len({*zip(options, values, strict=True)}) == len({*options})


def _choices(run: Run) -> dict[str, str]:
    """The options of config groups that were chosen on the command line: `model/student`, `optim`, `experiment`."""
    given = (override.lstrip("+").partition("=") for override in run.record.overrides)
    return {
        group: option
        for group, _, option in given
        if "/" in group or not ("." in group or group in NOT_IDENTITY or group in run.settings)
    }


def _label(run: Run, keys: Sequence[str]) -> str:
    settings = {**run.settings, **_choices(run)}
    shown = (f"{name}={in_label(settings.get(key))}" for key, name in short_names(keys).items())
    return " ".join([run.record.method, ", ".join(shown)]).rstrip()


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Each key's last word, `temperature` of `loss.kd.temperature`; more of the path where two keys end alike."""
    parts = {key: re.split("[./]", key) for key in keys}

    def short(own: list[str]) -> list[str]:
        ends = (own[-n:] for n in range(1, len(own)))
        return next((end for end in ends if sum(each[-len(end) :] == end for each in parts.values()) == 1), own)

    return {key: ".".join(short(own)) for key, own in parts.items()}


def settings_of(overrides: str) -> dict[str, str]:
    """The settings that trials.csv has of a trial: its overrides as one line of a shell."""
    return dict(each.split("=", 1) for each in shlex.split(overrides))


def in_label(value: object) -> str:
    """Numbers with six digits at most."""
    return f"{value:g}" if isinstance(value, float) else str(value)
