"""The trials of a study: each method's settings are chosen on the validation split, with a seed of their own."""

import csv
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from distillery.config.names import BASELINE
from distillery.core.errors import UserError
from distillery.core.files import atomic_write
from distillery.results.layout import TRIALS_TABLE
from distillery.results.record import RunRecord
from distillery.results.report.chosen import COLUMNS
from distillery.results.report.score import Score
from distillery.runs.job import Job
from distillery.runs.study_jobs import StudyJobs, candidates


class Trials:
    """Runs the candidates of each method and keeps the best.

    What the baseline's trials choose, its learning rate say, holds for all methods, and their own trials come after it.

    Args:
        cfg: of the study.
        jobs: those of the study. All candidates are checked at once, beside the baseline's first one.

    Attributes:
        first: the settings of each method with its first candidate, with which the students' jobs can be checked.

    Raises:
        UserError: see `candidates` and `check`; or the seed of the trials is one of the study's.
    """

    def __init__(self, cfg: DictConfig, jobs: StudyJobs) -> None:
        self._seed, self._out, self._jobs = cfg.trial_seed, Path(cfg.out), jobs
        self._candidates = candidates(cfg)
        if self._candidates and cfg.trial_seed in cfg.seeds:
            raise UserError(
                f"trial_seed={cfg.trial_seed} is also one of seeds: settings that were chosen with a seed look better "
                "with it than with others. Choose another trial_seed."
            )
        self.first = self._carried({name: own[0] for name, own in self._candidates.items()})
        for method in self._candidates:
            self._of(method, self.first)  # checks them

    def __len__(self) -> int:
        return sum(map(len, self._candidates.values()))

    def choose(self, run: Callable[[Job], RunRecord | None]) -> dict[str, list[str]]:
        """Run all trials; the chosen settings of each method, as overrides, and all trials in `<out>/trials.csv`.

        Args:
            run: runs a job unless it is finished; None where it failed.

        Raises:
            UserError: all trials of a method failed, or a folder holds another job than its trial.
        """
        chosen: dict[str, list[str]] = {}
        rows = []
        for method, own in self._candidates.items():
            jobs = self._of(method, self._carried(chosen))
            for job in jobs:
                job.found()  # refuses the folder of another job
            records = [run(job) for job in jobs]
            best = _best(method, records)
            chosen[method] = own[best]
            for place, (candidate, record) in enumerate(zip(own, records, strict=True)):
                value = None if record is None else record.val_monitored
                rows.append((method, shlex.join(candidate), self._seed, value, place == best))
        if rows:
            with atomic_write(self._out / TRIALS_TABLE) as unfinished, unfinished.open("w", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
        return self._carried(chosen)

    def _of(self, method: str, settings: dict[str, list[str]]) -> list[Job]:
        held = [] if method == BASELINE else settings.get(BASELINE, [])
        return [self._jobs.trial(method, candidate, held) for candidate in self._candidates[method]]

    def _carried(self, chosen: dict[str, list[str]]) -> dict[str, list[str]]:
        """The settings of every method: the baseline's, then its own."""
        held = chosen.get(BASELINE, [])
        return {name: held if name == BASELINE else [*held, *chosen.get(name, [])] for name in self._jobs.methods}


def _best(method: str, records: Sequence[RunRecord | None]) -> int:
    """The place of the record with the best validation score, of equal ones the first."""
    known = {
        place: Score.of_monitored(record).sign * record.val_monitored
        for place, record in enumerate(records)
        if record is not None and record.val_monitored is not None
    }
    if not known:
        raise UserError(f"No trial of {method} has a validation score, so that nothing can be chosen. See above why.")
    return max(known, key=lambda place: known[place])
