"""The rule for a job whose folder already holds something: the same for a run, a sweep and a study.

A job is a config and the folder it runs in. Two configs are the same job if they compute the same thing (see
`Job.identity`). What happens depends on what the folder holds:

- nothing, or a job that failed before it left anything: the job runs;
- this job, finished: it is kept as it is;
- this job, unfinished: it is resumed from its last checkpoint;
- another job: the job is refused and the folder stays untouched; `replace=true` removes what is there and runs it;
- a run under `debug=`: it is replaced;
- a job that another process runs at this moment: the job is refused (see `folder_lock.py`).
"""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from omegaconf import DictConfig, OmegaConf

from distillery.config.build import build_data, stored_teachers
from distillery.config.candidates import AUTO
from distillery.config.check import decided
from distillery.config.networks import run_config
from distillery.config.stages import RunSpec
from distillery.core.errors import UserError
from distillery.core.files import sha256_of
from distillery.core.process import is_main
from distillery.data.target_files import SUFFIXES
from distillery.models.weight_files import is_weights_file
from distillery.results.layout import CONFIG, RECORD, RESULTS
from distillery.results.record import RunRecord, computed_settings, config_hash, leaves
from distillery.runs.budget import Budget, OverBudget
from distillery.runs.checkpoints import moved
from distillery.runs.folder_lock import FolderLock
from distillery.teachers.cache_format import MANIFEST

DEBUG = "debug"  # the name that every config in configs/debug gives its run
OTHER_FOLDER = "To choose another folder: hydra.run.dir=…, of a sweep hydra.sweep.dir=…, of a study out=…"
WEIGHTS = ("*.safetensors", "*.bin")  # in a folder as `save_pretrained` writes it


@dataclass
class Job:
    """One run.

    Attributes:
        spec: its checked config; `paths.run` is its folder.
        overrides: the part of the config that was given on the command line.
        label: what a study calls it.
        fingerprints: SHA-256 of the data sets read so far, and of the soft labels in them, by their settings. The jobs
            of a study share them.
        measured: what the export of its student takes, by format (see `budget.py`). The seeds of a trial share it.
        group: the folder of its study or sweep, whose jobs share what was found for settings that are `auto`.
        autotune: what was found for them, see `RunRecord`; empty where there are none, or nothing is known yet.
    """

    spec: RunSpec
    overrides: Sequence[str] = ()
    label: str = ""
    fingerprints: dict[str, tuple[str, str]] = field(default_factory=dict)
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    group: Path | None = None
    autotune: dict[str, Any] = field(default_factory=dict)

    @property
    def cfg(self) -> DictConfig:
        return self.spec.cfg

    @property
    def folder(self) -> Path:
        return Path(self.cfg.paths.run)

    @property
    def budget(self) -> Budget | None:
        """What its exported student may take; None: anything."""
        return Budget.of(self.cfg)

    def is_measured(self, record: RunRecord | None) -> bool:
        """Whether a record says what the export of the student takes, or it may take anything."""
        return self.budget is None or (record is not None and self.budget.format in record.target)

    def identity(self) -> str:
        """SHA-256 of what is computed: the config without names, paths, loggers, progress bars and worker counts.

        Weights count by their content, wherever they lie: those of a finished run by the hash in its `run.json`, those
        in a file by the file's own. No network is loaded. Of the data the record holds a hash, see `found`. Settings
        that are `auto` count by what was chosen, see `autotuned`.
        """
        settings = plain(self.cfg)
        if self.spec.open:
            settings["open"] = {name: list(values) for name, values in self.spec.open.items()}
        if len(self.folder.parts) > 1:  # every relative path lies in "."
            settings = moved(settings, str(self.folder), "run")
        data = {key: _without_paths(value) for key, value in settings["data"].items()}
        return config_hash(_by_content({**settings, "data": data}))

    def autotuned(self, found: Mapping[str, Any]) -> Self:
        """The job with its settings that are `auto` as they were chosen, see `RunRecord.autotune`.

        It stays as it is if something else was to be chosen there, or this config refuses the choice.
        """
        choice = found.get("choice", {})
        if not self.spec.open or self.spec.open.keys() != choice.keys():
            return self
        with suppress(UserError):
            return replace(self, spec=decided(self.spec, choice), autotune=dict(found))
        return self

    def found(self) -> RunRecord | None:
        """The record of this very job, finished or not; None if the job is to run from its beginning.

        Settings that are `auto` become what that run has chosen. Nothing is changed on the disk.

        Raises:
            UserError: the folder holds another job, and `replace` is false; or it cannot be made.
        """
        if self.cfg.resume:
            return RunRecord.read(self.folder)
        refuse_unusable(self.folder)
        replace = bool(self.cfg.get("replace", False))
        try:
            record = RunRecord.read(self.folder) if (self.folder / RECORD).is_file() else None
        except UserError:
            if replace:
                return None
            raise
        left = [name for name in RESULTS if _is_there(self.folder / name)]
        if record is None:
            if left and not replace:
                raise UserError(
                    f"{self.folder} holds {' and '.join(left)}, but no {RECORD}. Add replace=true to remove "
                    f"them. {OTHER_FOLDER}"
                )
            return None
        if record.name == DEBUG:
            return None
        own = self.autotuned(record.autotune)
        if record.config_hash == own.identity() and self._has_same_data(record):
            self.spec, self.autotune = own.spec, own.autotune
            return record if record.data else None  # without: it was refused before anything was built
        if replace or (record.status in ("failed", "over budget") and not left):
            return None
        if not is_main():  # of a launcher, such as torchrun: the first rank decides, and `SameJob` compares the others
            return None
        raise UserError(
            f"{self.folder} holds a {record.status} run of another job ({own._differences()}). Add replace=true to "
            f"run this job in its place. {OTHER_FOLDER}"
        )

    def record_failure(self, error: Exception) -> None:
        """Leave a record of the error, also where it came before training. The folder of another job stays as it is.

        A finished run stays finished.
        """
        with suppress(UserError), FolderLock(self.folder):
            record = self.found()
            if record is None:
                remove_results(self.folder)
                cfg = self.cfg
                record = RunRecord(cfg.name, cfg.method, cfg.seed, self.identity(), list(self.overrides))
            if isinstance(error, OverBudget):
                record = error.record
            if record.status != "finished" and isinstance(error, OverBudget):
                record.status, record.error = "over budget", error.said
            elif record.status != "finished":
                record.status, record.error = "failed", f"{type(error).__name__}: {error}"
            record.write(self.folder)

    def _has_same_data(self, record: RunRecord) -> bool:
        """Whether the data of each stage, and soft labels in them, are those that the run in the folder had."""
        for stage in self.spec.stages:
            settings = OmegaConf.to_yaml(stage.cfg.data, resolve=True)
            columns = [name for name, teacher in stored_teachers(stage.cfg).items() if teacher.path is None]
            for source in ("data", *(f"teachers.{name}" for name in columns)):
                if (sha256 := record.sources.get(f"{stage.name}:{source}")) is None:
                    continue
                if settings not in self.fingerprints:
                    data = build_data(stage.cfg)
                    self.fingerprints[settings] = data.fingerprint, data.soft_labels_sha256
                fingerprint, soft_labels = self.fingerprints[settings]
                if sha256 != (fingerprint if source == "data" else soft_labels):
                    return False
        return True

    def _differences(self) -> str:
        """What distinguishes the job in the folder from this one, as far as its config tells."""
        if not (self.folder / CONFIG).is_file():
            return "its config is lost"
        there = dict(leaves(computed_settings(plain(run_config(str(self.folder), "paths.run")))))
        here = dict(leaves(computed_settings(plain(self.cfg)))) | dict.fromkeys(self.spec.open, AUTO)
        differ = [key for key, value in here.items() if value is not None and there.get(key, value) != value]
        if not differ:
            return "its teacher, its data or the version of Distillery differ"
        said = [f"{key} is {there[key]} there and {here[key]} here" for key in differ[:3]]
        return ", ".join(said) + (f", and {len(differ) - 3} more" if len(differ) > 3 else "")


def resumed(folder: Path, overrides: Sequence[str]) -> DictConfig:
    """The config of the run in `folder`, which may have been moved, to be resumed.

    Raises:
        UserError: an override that the run did not have: a run is resumed under its own config.
    """
    record = RunRecord.read(folder)
    if foreign := [o for o in overrides if o not in record.overrides and not o.startswith("resume=")]:
        raise UserError(
            f"A resumed run takes its config from its folder, and {', '.join(foreign)} is not part of it. "
            "Leave it out, or start a new run with it."
        )
    saved = plain(run_config(str(folder), "resume"))
    cfg: DictConfig = OmegaConf.create(moved(saved, saved["paths"]["run"], str(folder)))
    cfg.resume = str(folder)
    return cfg


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as plain data."""
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def remove_results(folder: Path) -> None:
    """Remove what a former run has left in its folder: its best checkpoint, say, would be taken for the next run's."""
    for name in RESULTS:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def refuse_unusable(folder: Path) -> None:
    """Refuse a run folder that cannot be made or written to; it is not touched."""
    existing = next(each for each in (folder, *folder.absolute().parents) if os.path.lexists(each))
    if not existing.is_dir():
        raise UserError(f"The run folder {folder} cannot be made: {existing} is not a folder. {OTHER_FOLDER}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"There is no permission to write the run folder {folder}. {OTHER_FOLDER}")


def _is_there(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _by_content(value: Any) -> Any:
    """`value` with the hash of the weights in place of each path to weights."""
    if isinstance(value, Mapping):
        return {key: _by_content(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_by_content(item) for item in value]
    return _weights_sha256(Path(value).expanduser()) or value if _is_path(value) else value


def _weights_sha256(path: Path) -> str | None:
    """SHA-256 of the weights of a finished run, in a file or a transformer's folder; of stored targets and signals."""
    if (is_weights_file(path) or path.suffix in (*SUFFIXES, ".gguf")) and path.is_file():
        return sha256_of(path)
    if (path / MANIFEST).is_file():
        return sha256_of(path / MANIFEST)
    if (path / RECORD).is_file():
        return RunRecord.read(path).student_sha256
    if (path / "config.json").is_file():
        files = sorted(file for pattern in WEIGHTS for file in path.glob(pattern))
        return hashlib.sha256(" ".join(map(sha256_of, files)).encode()).hexdigest()
    return None


def _without_paths(value: Any) -> Any:
    """`value` without the names of existing files: what is in them is in the data's own hash."""
    if isinstance(value, Mapping):
        return {key: _without_paths(item) for key, item in value.items()}
    return None if _is_path(value) else value


def _is_path(value: Any) -> bool:
    """Whether it names an existing file or folder."""
    try:
        return isinstance(value, str) and bool(value) and Path(value).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long for a path, or in the home of an unknown user
        return False
