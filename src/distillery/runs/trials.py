"""What became of the trials of a sweep: the best one, what they take of a budget, and which parameters mattered."""

import logging
import math
import shlex
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from distillery.config.sweep_words import arguments
from distillery.results.exports import Measured
from distillery.results.report.score import Score
from distillery.results.report.search import Search
from distillery.runs.budget import MEGABYTE, Budget
from distillery.runs.sweep_journal import Outcome

ENOUGH = 10  # trials for the importance of parameters: fewer hardly tell them apart


@dataclass
class Trial:
    """One trial.

    Attributes:
        parameters: the values of its parameters, as the sweeper has written them.
        seeds: those that it trained.
        scores: the validation score of each seed.
        outcomes: of each seed.
        folders: of each seed.
        budget: that of the student, if it has one.
        taken: what it takes of it.
    """

    parameters: Mapping[str, str]
    seeds: list[int] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    budget: Budget | None = None
    taken: Measured | None = None

    @property
    def value(self) -> float:
        """The mean validation score; NaN if a seed failed."""
        known = [score for score in self.scores if score is not None]
        return statistics.fmean(known) if len(known) == len(self.scores) else math.nan

    @property
    def excess(self) -> float:
        """How many times it takes its budget; 0 without one."""
        return self.budget.excess(self.taken) if self.budget and self.taken else 0.0


def trials_of(notes: Sequence[Mapping[str, Any]]) -> dict[int, Trial]:
    """The trials by number, from the notes of the sweep's jobs."""
    trials: dict[int, Trial] = {}
    for each in notes:
        trial = trials.setdefault(each["job"], Trial(each["swept"]))
        trial.seeds.append(each["seed"])
        trial.scores.append(each["score"])
        trial.outcomes.append(each["outcome"])
        trial.folders.append(Path(each["folder"]))
        if target := each["target"]:
            trial.budget, trial.taken = Budget(**target["budget"]), Measured(**target["measured"])
    return dict(sorted(trials.items()))


def ranked(trials: Mapping[int, Trial], score: Score) -> list[int]:
    """The trials that have a score, the best first; of equal ones that which takes less of its budget."""
    finished = {number: trial for number, trial in trials.items() if math.isfinite(trial.value)}
    return sorted(finished, key=lambda number: (-score.sign * finished[number].value, finished[number].excess))


def search_of(trials: Mapping[int, Trial], score: Score, config: DictConfig) -> Search:
    """The trials as the report and the sweep's folder have them.

    Args:
        score: that of the validation.
        config: of the sweep, with Hydra's own part; folders are told relative to the sweep's.
    """
    out, finished = Path(config.hydra.sweep.dir).resolve(), ranked(trials, score)
    rows = []
    for number, trial in trials.items():
        values = {key: OverridesParser.create().parse_override(f"k={v}").value() for key, v in trial.parameters.items()}
        costs = _costs(trial) if any(each.budget for each in trials.values()) else {}
        for seed, value, outcome, folder in zip(trial.seeds, trial.scores, trial.outcomes, trial.folders, strict=True):
            rows.append(
                {
                    "trial": number,
                    "settings": shlex.join(f"{key}={value}" for key, value in values.items()),
                    "seed": seed,
                    "validation": value,
                    "chosen": number in finished[:1],
                    "outcome": outcome,
                    "folder": str(folder.relative_to(out) if folder.is_relative_to(out) else folder),
                    **costs,
                }
            )
    return Search(pd.DataFrame(rows), importances({number: trials[number] for number in finished}, config))


def _costs(trial: Trial) -> dict[str, Any]:
    """What an exported student takes and may take; empty where it was not measured."""
    taken, budget = trial.taken, trial.budget
    if taken is None or budget is None:
        return {"bytes": None}
    return {
        "latency_ms": taken.latency_ms,
        "busy": taken.busy,
        "bytes": taken.bytes,
        "max_latency_ms": budget.latency_ms,
        "max_bytes": None if budget.size_mb is None else MEGABYTE * budget.size_mb,
    }


def importances(trials: Mapping[int, Trial], config: DictConfig) -> dict[str, float]:
    """How much of what a random forest learns of the value is owed to each parameter (mean decrease in impurity).

    They sum to 1, the largest first. Empty where fewer than `ENOUGH` trials are finished, all have the same value, or
    Optuna is not searching.
    """
    if "optuna" not in config.hydra.sweeper._target_ or len(trials) < ENOUGH:
        return {}
    if len({trial.value for trial in trials.values()}) == 1:
        return {}
    import optuna
    from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides

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
