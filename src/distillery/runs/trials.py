"""What a search found: its trials, the best one, what they take of a budget, and which parameters mattered."""

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
from distillery.results.exports import Measured
from distillery.results.report.formats import NONE, in_unit
from distillery.results.report.score import Score
from distillery.results.report.settings import short_names
from distillery.runs.budget import MEGABYTE, Budget
from distillery.runs.export.exports_table import size
from distillery.runs.sweep_summary import Outcome

ENOUGH = 10  # trials for the importance of parameters: fewer hardly tell them apart


@dataclass
class Trial:
    """One trial.

    Attributes:
        parameters: the values of its parameters, as the sweeper has written them.
        scores: the validation score of each seed.
        outcomes: of each seed.
        folders: of each seed.
        budget: that of the student, if it has one.
        taken: what it takes of it.
    """

    parameters: Mapping[str, str]
    scores: list[float | None] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    budget: Budget | None = None
    taken: Measured | None = None

    @property
    def known(self) -> list[float]:
        """The scores of the seeds that did not fail."""
        return [score for score in self.scores if score is not None]

    @property
    def value(self) -> float:
        """The mean validation score; NaN if a seed failed."""
        return statistics.fmean(self.known) if len(self.known) == len(self.scores) else math.nan

    @property
    def excess(self) -> float:
        """How many times it takes its budget; 0 without one."""
        return self.budget.excess(self.taken) if self.budget and self.taken else 0.0

    def shown(self, score: Score) -> str:
        """Its score, or why it has none."""
        for outcome in ("over budget", "failed"):
            if outcome in self.outcomes:
                return outcome
        if not self.known:
            return NONE
        spread = f" ± {in_unit(statistics.stdev(self.known), score)}" if len(self.known) > 1 else ""
        return in_unit(self.value, score) + spread


def trials_of(notes: Sequence[Mapping[str, Any]]) -> dict[int, Trial]:
    """The trials by number, from the notes of the sweep's jobs."""
    trials: dict[int, Trial] = {}
    for each in notes:
        trial = trials.setdefault(each["job"], Trial(each["swept"]))
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


def named(trials: Mapping[int, Trial], number: int) -> str:
    """`trial 3, temperature=2, lr=0.1`."""
    own = trials[number].parameters
    return ", ".join([f"trial {number}", *(f"{name}={shown(own[key])}" for key, name in short_names([*own]).items())])


def trials_table(trials: Mapping[int, Trial], score: Score, config: DictConfig) -> Group:
    """The trials with their validation score, the best in bold; and the importance of the parameters, of enough trials.

    Args:
        score: that of the validation.
        config: of the sweep, with Hydra's own part.
    """
    best = next(iter(ranked(trials, score)), None)
    names = short_names([*next(iter(trials.values())).parameters])
    budgets = list(dict.fromkeys(trial.budget for trial in trials.values() if trial.budget))
    table = Table(title=f"Trials of {config.name}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("trial", *names.values(), *(_headings(budgets) if budgets else ()), "seeds", score.validation):
        table.add_column(heading, justify="right")
    for numbers in _drawn_alike(trials):
        trial = trials[numbers[0]]
        cells = [shown(trial.parameters[key]) for key in names] + (_costs(trial.taken) if budgets else [])
        style = "bold" if best in numbers else None
        which = ", ".join(map(str, numbers))
        table.add_row(which, *cells, str(len(trial.scores)), trial.shown(score), style=style)
    lines = []
    if best is not None:
        lines.append(f"Best on the validation split: {named(trials, best)}.")
    if weights := importances({number: trials[number] for number in ranked(trials, score)}, config):
        said = ", ".join(f"{names[key]} {weight:.2f}" for key, weight in weights.items())
        lines.append(f"Importance of the parameters: {said}.")
    return Group(table, *lines, "")


def _drawn_alike(trials: Mapping[int, Trial]) -> list[list[int]]:
    """The trials by row of the table: those that share parameters and runs are one candidate, drawn several times."""
    rows: dict[tuple[Any, ...], list[int]] = {}
    for number, trial in trials.items():
        rows.setdefault((*trial.parameters.values(), *trial.folders), []).append(number)
    return list(rows.values())


def _headings(budgets: Sequence[Budget]) -> tuple[str, str]:
    """Of the two columns of costs, with the budget if all trials have one."""
    latencies, sizes = {each.latency_ms for each in budgets}, {each.size_mb for each in budgets}
    latency, largest = (values.pop() if len(values) == 1 else None for values in (latencies, sizes))
    return (
        f"ms\n≤ {latency:g}" if latency else "ms",
        f"file\n≤ {size(MEGABYTE * largest)}" if largest else "file",
    )


def _costs(taken: Measured | None) -> list[str]:
    if taken is None:
        return [NONE, NONE]
    return [f"{taken.latency_ms:.3g}" + " (busy)" * taken.busy, size(taken.bytes)]


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
