"""The end of a search under a budget: the best student within it is exported, and measured as the file that it is."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Group, RenderableType

from distillery.results.exports import Export, read_exports
from distillery.results.layout import EXPORT
from distillery.results.record import RunRecord
from distillery.results.report.score import Score
from distillery.results.report.search import Search
from distillery.runs.export.export import export
from distillery.runs.export.exports_table import exports_table, remarks
from distillery.runs.trials import Trial, ranked


def winner(trials: Mapping[int, Trial], search: Search, score: Score) -> Group:
    """What is said of it."""
    return Group(*_said(trials, search, score), "")


def _said(trials: Mapping[int, Trial], search: Search, score: Score) -> Iterator[RenderableType]:
    """The trials are exported in the order of their scores, until a file is within the budget."""
    measured = {number: trial for number, trial in trials.items() if trial.taken}
    if {outcome for trial in measured.values() for outcome in trial.outcomes} == {"over budget"}:
        nearest = min(measured, key=lambda number: measured[number].excess)
        budget, taken = trials[nearest].budget, trials[nearest].taken
        assert budget is not None
        assert taken is not None
        yield (
            "No candidate is within the budget: none was trained. The nearest is "
            f"{search.named(nearest)}: {budget.compared(taken)}."
        )
        return
    for number in ranked(measured, score):
        trial = trials[number]
        assert trial.budget is not None
        folder = trial.folders[max(range(len(trial.scores)), key=lambda seed: score.sign * (trial.scores[seed] or 0))]
        found = _exported(folder, trial.budget.format)
        said = f"{search.named(number)}: {trial.budget.compared(found)}."
        if trial.budget.excess(found) > 1:
            yield f"Over the budget after training: {said}"
            continue
        yield f"Winner: {said}"
        yield exports_table(RunRecord.read(folder), [found])
        yield from remarks([found])
        yield f"Written: {folder / EXPORT / found.path}"
        return
    yield "No trained student is within the budget as it is exported."


def _exported(run: Path, name: str) -> Export:
    """The export of a run in a format, made now unless it is there."""
    there = (each for each in read_exports(run) if each.format == name)
    return next(there, None) or export(run, [name])[0]
