"""From run folders to runs: every record below some folders, with its agreement with the teacher."""

import hashlib
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from distillery.core.errors import UserError
from distillery.results.layout import CONFIG, PREDICTIONS, PROBABILITIES, RECORD, SWEEPS, TRIALS
from distillery.results.record import RunRecord, computed_settings, leaves

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where libyaml is there
Predictions = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Run:
    """A run folder as the report sees it.

    Attributes:
        folder: of the run.
        record: its `run.json`.
        settings: what is computed, by dotted path: its `config.yaml` without names, paths, loggers and bars, and of a
            run without teachers without the losses on their signals.
        label: of its row in the table, see `settings.labelled`.
        agreement: share of test samples on which student and teacher agree; None where no teacher's predictions are
            known, or the predictions are not classes.
        tested_on: SHA-256 of the targets of the test samples; None: there are no predictions.
    """

    folder: Path
    record: RunRecord
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    agreement: float | None = None
    tested_on: str | None = None

    @property
    def score(self) -> float | None:
        """Score on the test split at the last epoch: nothing is selected on test."""
        score: float | None = self.record.metrics.get("last", {}).get("test_score")
        return score

    @property
    def swept(self) -> bool:
        """Whether it was a job of a sweep (`distill-train -m`)."""
        return any((parent / name).is_file() for parent in self.folder.parents[:2] for name in SWEEPS)


def collect(folders: Iterable[Path]) -> list[Run]:
    """Every run at or below the folders: folders in the given order, within each by the time of the start.

    Failed and unfinished runs are among them, marked by `record.status`; the trials of a study are not. A run without
    a frozen teacher, as a baseline, is held against the teacher of a run on the same test samples, one of its seed if
    there is one.

    Raises:
        UserError: a folder that does not exist or holds no run, a torn record or predictions file.
    """
    found: dict[Path, Run] = {}
    for folder in folders:
        below = [_read(path.parent) for path in _records(folder)]
        for run in sorted(below, key=lambda run: run.record.started):
            found.setdefault(run.folder.resolve(), run)
    runs = list(found.values())
    predictions = {run.folder: predictions_of(run.folder) for run in runs if run.record.status == "finished"}
    return [
        replace(
            run, agreement=_agreement(run, runs, predictions), tested_on=_tested_on(predictions.get(run.folder, {}))
        )
        for run in runs
    ]


def _records(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Name run folders, or a folder above them: runs=[outputs/demo]")
    found = sorted(path for path in folder.rglob(RECORD) if path.relative_to(folder).parts[-4:-3] != (TRIALS,))
    if not found:
        raise UserError(f"There is no run in {folder}: no {RECORD} in it or below it. Name another folder.")
    return found


def _read(folder: Path) -> Run:
    record, path = RunRecord.read(folder), folder / CONFIG
    config = yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER) if path.is_file() else {}
    settings = dict(leaves(computed_settings(config)))
    if not record.teachers:
        settings = {key: value for key, value in settings.items() if not key.startswith("loss.")}
    return Run(folder, record, settings, label=record.method)


def predictions_of(folder: Path, probabilities: bool = False) -> Predictions:
    """What is predicted; of classes with their `probabilities`, which are large, only where they are asked for."""
    path = folder / PREDICTIONS
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            wanted = (name for name in arrays.files if probabilities or not name.endswith(PROBABILITIES))
            return {name: arrays[name] for name in wanted}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}). Run that job again, or remove its folder.") from None


def _tested_on(own: Predictions) -> str | None:
    if not {"index", "target"} <= own.keys():
        return None
    order = np.argsort(own["index"], kind="stable")
    return hashlib.sha256(own["target"][order].tobytes()).hexdigest()


def _agreement(run: Run, runs: Sequence[Run], predictions: Mapping[Path, Predictions]) -> float | None:
    """Share of samples of which the same is predicted, the mean over the teachers (Stanton et al. 2021, section 3)."""
    own = predictions.get(run.folder, {})
    if "student" not in own:
        return None
    seed_first = sorted(runs, key=lambda other: other.record.seed != run.record.seed)
    for other in [run] if run.record.frozen_teachers else seed_first:
        theirs = predictions.get(other.folder, {})
        teachers = [theirs[name] for name in other.record.frozen_teachers if name in theirs]
        same_data = other.record.data.get("name") == run.record.data.get("name")
        if teachers and same_data and np.array_equal(theirs["index"], own["index"]):
            if not all(_classes_alike(own["student"], teacher) for teacher in teachers):
                return None
            same = [own["student"] == teacher for teacher in teachers]  # of labels all of a sample's
            return float(np.mean([each.reshape(len(each), -1).all(1) for each in same]))
    return None


def _classes_alike(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether both are classes of the same rows, and not numbers or vectors, of which hardly any two are equal."""
    return a.shape == b.shape and all(np.issubdtype(array.dtype, np.integer) for array in (a, b))
