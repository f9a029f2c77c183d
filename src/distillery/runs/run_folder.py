"""Config and record of a run folder, kept up to date from the first step of the run to its end."""

import errno
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from omegaconf import DictConfig

from distillery.config.command_line import pasteable
from distillery.core.errors import UserError
from distillery.core.files import remove_unfinished
from distillery.core.paths import CONFIGS
from distillery.core.process import is_main
from distillery.core.terminal import say
from distillery.results.environment import environment, git_state
from distillery.results.record import RunRecord
from distillery.runs.checkpoints import written_checkpoints
from distillery.runs.folder_lock import FolderLock
from distillery.runs.job import Job, remove_results
from distillery.runs.stages.sequence import StageSequence, save_config
from distillery.tasks.metrics import facts
from distillery.teachers.served import same_teacher
from distillery.teachers.served_client import ServerError

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # disk full, over quota, read-only


class RunFolder:
    """Within: `run.json` follows what happens to the run, up to the error that it may end in.

    Until `begin` is called the folder is not touched: settings that are refused leave a former run as it was.
    """

    def __init__(self, folder: Path, record: RunRecord, lock: FolderLock) -> None:
        self._folder = folder
        self._record = record
        self._lock = lock
        self._start = time.monotonic() - (record.seconds or 0)
        self._begun = False

    def begin(self, cfg: DictConfig) -> None:
        """Take over the folder and save the config. Unless the run is resumed, results of a former run are removed.

        Raises:
            UserError: the folder cannot be written, or another process runs a job in it.
        """
        if not is_main():
            self._begun = True
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock.take()  # before: another process may write here
            self._begun = True
            remove_unfinished(self._folder)
            if not cfg.resume:
                remove_results(self._folder)
            save_config(cfg, self._folder)
            self._write()  # after the config, without which a run cannot be resumed
        except OSError as error:
            self._begun = False
            raise UserError(f"The run folder {self._folder} cannot be written: {error}") from error

    def fail(self, error: str) -> None:
        """Record the error of a run that is about to be ended without an exception."""
        self._record.status, self._record.error = "failed", error
        if self._begun:
            with suppress(OSError):  # the disk may be full: what ended the run is told all the same
                self._write()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self._write()
            return
        interrupted = isinstance(error, SystemExit)  # Ctrl-C, SIGTERM
        reason = (error.__context__ or error) if interrupted else error
        self.fail(f"{type(reason).__name__}: {reason}")
        if (interrupted or isinstance(error, ServerError)) and is_main() and written_checkpoints(self._folder):
            say("To resume it: " + pasteable("distill-train", "resume", str(self._folder)))
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            raise UserError(
                f"The run folder {self._folder} can no longer be written: {error.strerror}. The last checkpoint is "
                f"undamaged: make room, then {pasteable('distill-train', 'resume', str(self._folder))}"
            ) from error

    def _write(self) -> None:
        self._record.seconds = round(time.monotonic() - self._start, 3)
        if is_main():
            self._record.write(self._folder)


def describe(sequence: StageSequence, job: Job) -> RunRecord:
    """The record of a run that has not started yet."""
    cfg, data, task = sequence.parts.cfg, sequence.data(-1), sequence.parts.distiller.task
    return RunRecord(
        name=cfg.name,
        method=cfg.method,
        seed=cfg.seed,
        config_hash=job.identity(),
        overrides=list(job.overrides),
        git=git_state(CONFIGS.parent),
        environment=environment(),
        data={
            "name": data.name,
            "fingerprint": data.fingerprint,
            "num_classes": len(data.classes),
            "classes": list(data.classes),
            "prediction": task.prediction,
            "score_name": task.score,
            "higher_is_better": task.higher_is_better,
            "score_range": list(task.score_range),
            "metrics": {name: facts(name) for name in task.metrics},
            "monitor": task.monitor,
            "measured": task.measured(data),
            "remarks": list(data.remarks),
            **data.sizes,
            "labelled": data.labelled,
            "unlabelled": data.unlabelled,
        },
        sources=sequence.sources(),
        autotune=job.autotune,
        remarks=sequence.parts.distiller.remarks,
    )


def continued(record: RunRecord, before: RunRecord, folder: Path) -> RunRecord:
    """`record` as that of the run in `folder`, which is resumed: the job that was started, from the same sources.

    Raises:
        UserError: data or teachers are not those that the run was started with.
    """
    for source, sha256 in record.sources.items():
        if same_teacher(before.sources.get(source, sha256), sha256):
            continue
        stage, _, name = source.partition(":")
        what = f"the data of {record.data['name']} are not those" if name == "data" else f"{name} is not the teacher"
        setting = "data.root" if name == "data" else f"{name}.weights (of stored targets: path, of a served one: url)"
        raise UserError(
            f"{folder} cannot be resumed: {f'in stage {stage!r} ' if stage else ''}{what} that it was started with. "
            f"Put back what was there, point {setting} of its config.yaml to it, or start a new run."
        )
    names = ("config_hash", "overrides", "started", "seconds", "fit_seconds", "target", "autotune")
    kept = {name: getattr(before, name) for name in names}
    return replace(record, **kept, sources=record.sources | before.sources)
