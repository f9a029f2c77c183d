"""One run, from a config to a finished run folder. The file to read first."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
from omegaconf import DictConfig

from distillery.config.build import Parts
from distillery.config.check import check
from distillery.config.check_strategy import is_fsdp2
from distillery.core.errors import UserError
from distillery.core.process import is_main, processes
from distillery.core.terminal import telling
from distillery.results.record import RunRecord
from distillery.runs.autotune.autotune import autotune
from distillery.runs.checkpoints import Resumption, last_checkpoint, written_checkpoints
from distillery.runs.folder_lock import FolderLock
from distillery.runs.job import Job
from distillery.runs.loggers import log_config, log_scores, tracked
from distillery.runs.over_budget import refuse_missing_format, refuse_over_budget
from distillery.runs.plan import show_plan
from distillery.runs.ranks import SameJob, ranks, refuse_torchrun
from distillery.runs.run_folder import RunFolder, continued, describe
from distillery.runs.score_run import score_run
from distillery.runs.stages.progressive import Position, ProgressiveDistillation, StagedData
from distillery.runs.stages.sequence import StageSequence
from distillery.runs.trainer import make_trainer
from distillery.training.callbacks.termination import Termination
from distillery.training.callbacks.timeline import Timeline


@dataclass
class Result:
    """A finished run: its record (also in `run.json`) and its folder.

    Attributes:
        built: what the run was made of; None if it was finished before and has been kept.
    """

    record: RunRecord
    folder: Path
    built: Parts | None = None

    @property
    def kept(self) -> bool:
        """Whether the run was finished before, and nothing was trained now."""
        return self.built is None

    @property
    def parts(self) -> Parts:
        """Data, networks and objective of the run.

        Raises:
            UserError: the run was kept, and nothing was built.
        """
        if self.built is None:
            raise UserError(f"The run in {self.folder} was finished before. distillery.config.build makes its parts.")
        return self.built


def train(cfg: DictConfig, overrides: Sequence[str] = (), callbacks: Sequence[L.Callback] = ()) -> Result:
    """Train the student that `cfg` describes and leave a complete run folder in `cfg.paths.run`.

    A job that the folder already holds is kept if it is finished, and resumed if it is not (see `job.py`).

    Args:
        cfg: the composed config, as `configs/train.yaml` lays it out.
        overrides: the part of it that was given on the command line, kept in the record.
        callbacks: more callbacks beside those of the config; they are called in this process only.

    Raises:
        UserError: before anything is trained, if config, data, networks or losses do not fit together, the student is
            over its budget (`OverBudget`), or the folder holds another job; or when training itself breaks off (NaN),
            which is recorded in the folder.
        SystemExit: on SIGTERM (143), and on Ctrl-C during the fit (1). The run is recorded as failed, too.
    """
    return run_job(Job(check(cfg, overrides), overrides), callbacks)


def run_job(job: Job, callbacks: Sequence[L.Callback] = ()) -> Result:
    """`train` for a config that has been checked."""
    with FolderLock(job.folder) as lock, arithmetic(job.cfg):
        return _run(job, callbacks, lock)


def _run(job: Job, callbacks: Sequence[L.Callback], lock: FolderLock) -> Result:
    refuse_torchrun(job.cfg.trainer)
    # Look at what the folder already holds.
    before = job.found()
    refuse_missing_format(job)
    if before and (before.status == "finished" or job.is_measured(before)):
        refuse_over_budget(job, before)
    if before and before.status == "finished":
        return Result(before, job.folder)
    autotune(job)
    spec = job.spec.resuming(job.folder if before else None)
    begun = before and (before.status != "over budget" or written_checkpoints(job.folder))
    checkpoint = last_checkpoint(job.folder) if begun else None
    position = Position.saved(checkpoint)
    # Build data, networks and objective; nothing has been written so far.
    sequence = StageSequence(spec)
    show = telling() and is_main()
    last = None
    if sequence.several and (position == Position() or not job.is_measured(before)):
        last = sequence.rehearse(show)
    sequence.begin(position.place, position.students)
    if show and not sequence.several:
        show_plan(sequence.parts)
    saved = sequence.saved_cfg()
    record = describe(sequence, job)
    if before:
        record = continued(record, before, job.folder)
    refuse_over_budget(job, record, last or sequence.parts)
    with (
        Termination(job.folder) as termination,
        tracked(saved, record, job.folder) as loggers,
        RunFolder(job.folder, record, lock) as run_folder,
        ranks(sequence.job_cfg, run_folder.fail) as all_ranks,
    ):
        stages = ProgressiveDistillation(sequence, position)
        first = [termination, SameJob(sequence.job_cfg), *([stages] if sequence.several else [])]
        own = [*callbacks, Timeline(record.timeline), Resumption(lambda: stages.ended)]
        trainer = make_trainer(saved, loggers, own, first)
        data = StagedData(stages) if sequence.several else sequence.parts.data.on(trainer.strategy.root_device)
        # Train.
        run_folder.begin(saved)
        log_config(loggers, saved, record, job.folder)
        began = time.monotonic()
        try:
            trainer.fit(sequence.parts.distiller, datamodule=data, ckpt_path=checkpoint)
        finally:
            record.fit_seconds = round((record.fit_seconds or 0) + time.monotonic() - began, 3)
        epochs = trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
        if sequence.several:
            stages.refuse_unfinished(epochs)
        # Score. One process alone does so: it sees each sample exactly once.
        sequence.gather()
        all_ranks.join()
        if is_main():
            if not is_fsdp2(saved.trainer.get("strategy")):  # whose student may be too large for one device
                sequence.parts.distiller.to(trainer.strategy.root_device)  # Lightning leaves it on the CPU
            score_run(record, sequence.parts, epochs, job.folder, sequence.teachers(), sequence.ensemble())
            log_scores(loggers, saved, record, trainer.global_step)
            record.status = "finished"
    return Result(record, job.folder, sequence.parts)


@contextmanager
def arithmetic(cfg: DictConfig) -> Iterator[None]:
    """Within: torch has `cfg.threads` threads, or this process's share of the cores, and GPUs use TF32 or not.

    With another number of threads sums, and therefore weights, differ in their last bits.
    """
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32  # which torch allows unasked
    torch.set_num_threads(cfg.threads or max(1, threads // processes(cfg.trainer)))
    torch.set_float32_matmul_precision("high" if cfg.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = cfg.tf32
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = convolutions
