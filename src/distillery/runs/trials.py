"""What a search with Optuna found: its trials, the best one, and which parameters mattered."""

import logging
import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from distillery.config.sweep_words import arguments, shown
from distillery.results.record import RunRecord
from distillery.results.report.formats import in_unit
from distillery.results.report.score import Score
from distillery.results.report.settings import short_names

ENOUGH = 10  # trials for the importance of parameters: fewer hardly tell them apart


@dataclass
class Trial:
    """One trial: the values of its parameters, as the sweeper has written them, and the score of each seed."""

    parameters: Mapping[str, str]
    scores: list[float | None] = field(default_factory=list)

    @property
    def known(self) -> list[float]:
        """The scores of the seeds that did not fail."""
        return [score for score in self.scores if score is not None]

    @property
    def value(self) -> float:
        """The mean validation score; NaN if a seed failed."""
        return statistics.fmean(self.known) if len(self.known) == len(self.scores) else math.nan


def trials_of(notes: Sequence[Mapping[str, Any]]) -> dict[int, Trial]:
    """The trials by number, from the notes of the sweep's jobs."""
    trials: dict[int, Trial] = {}
    for each in notes:
        trials.setdefault(each["job"], Trial(each["swept"])).scores.append(each["score"])
    return dict(sorted(trials.items()))


def trials_table(trials: Mapping[int, Trial], folder: Path, config: DictConfig) -> Group:
    """The trials with their validation score, the best in bold; and the importance of the parameters, of enough trials.

    Args:
        folder: of a run of the sweep, whose record says what the score is.
        config: of the sweep, with Hydra's own part.
    """
    score = Score.of_monitored(RunRecord.read(folder))
    finished = {number: trial.value for number, trial in trials.items() if math.isfinite(trial.value)}
    best = max(finished, key=lambda number: score.sign * finished[number], default=None)
    names = short_names([*next(iter(trials.values())).parameters])
    table = Table(title=f"Trials of {config.name}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("trial", *names.values(), "seeds", score.validation):
        table.add_column(heading, justify="right")
    for number, trial in trials.items():
        cells = [shown(trial.parameters[key]) for key in names]
        value = in_unit(trial.value, score) if number in finished else "failed"
        if len(trial.scores) > 1 and number in finished:
            value += f" ± {in_unit(statistics.stdev(trial.known), score)}"
        style = "bold" if number == best else None
        table.add_row(str(number), *cells, str(len(trial.scores)), value, style=style)
    lines = []
    if best is not None:
        chosen = ", ".join(f"{name}={shown(trials[best].parameters[key])}" for key, name in names.items())
        lines.append(f"Best on the validation split: trial {best}, {chosen}.")
    if weights := importances({number: trials[number] for number in finished}, config):
        said = ", ".join(f"{names[key]} {weight:.2f}" for key, weight in weights.items())
        lines.append(f"Importance of the parameters: {said}.")
    return Group(table, *lines, "")


def importances(trials: Mapping[int, Trial], config: DictConfig) -> dict[str, float]:
    """How much of what a random forest learns of the value is owed to each parameter (mean decrease in impurity).

    They sum to 1, the largest first. Empty where fewer than `ENOUGH` trials are finished, or all have the same value.
    """
    import optuna
    from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides

    if len(trials) < ENOUGH or len({trial.value for trial in trials.values()}) == 1:
        return {}
    space = create_params_from_overrides(arguments(config))[0]
    optuna.logging.set_verbosity(logging.WARNING)
    study = optuna.create_study()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        for trial in trials.values():
            values = {name: _in_space(trial.parameters[name], distribution) for name, distribution in space.items()}
            study.add_trial(optuna.trial.create_trial(params=values, distributions=space, value=trial.value))
        evaluator = optuna.importance.MeanDecreaseImpurityImportanceEvaluator(seed=0)  # NumPy 2 breaks its fANOVA
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _in_space(written: str, distribution: Any) -> Any:
    """The value that the sweeper has written into an override."""
    if hasattr(distribution, "choices"):
        return next(choice for choice in distribution.choices if str(choice) == written)
    return distribution.to_external_repr(float(written))
