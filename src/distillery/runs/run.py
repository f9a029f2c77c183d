"""One run, from a config to a finished run folder. The file to read first."""

import logging
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from distillery.config.build import Parts
from distillery.config.check import check
from distillery.core.errors import UserError
from distillery.core.files import remove_unfinished
from distillery.core.paths import CONFIGS
from distillery.core.process import is_main, processes
from distillery.results.environment import environment, git_state
from distillery.results.layout import CHECKPOINTS, PREDICTIONS, RECORD, STUDENT
from distillery.results.layout import STAGES as STAGES
from distillery.results.record import RunRecord, config_hash
from distillery.runs.checkpoints import LastCheckpoint, Resumption, WholeCheckpoints, last_checkpoint
from distillery.runs.loggers import log_scores, tracked
from distillery.runs.plan import show_plan
from distillery.runs.ranks import SameJob, ranks
from distillery.runs.score_run import score_run
from distillery.runs.stages.progressive import Position, ProgressiveDistillation, StagedData
from distillery.runs.stages.sequence import StageSequence, save_config
from distillery.training.callbacks.balance import Balance
from distillery.training.callbacks.follow_schedules import FollowSchedules
from distillery.training.callbacks.random_state import RandomState
from distillery.training.callbacks.termination import Termination
from distillery.training.callbacks.timeline import Timeline


@dataclass
class Result:
    """A finished run: its record (also in `run.json`), its parts, its folder."""

    record: RunRecord
    parts: Parts
    folder: Path


def train(cfg: DictConfig, overrides: Sequence[str] = (), callbacks: Sequence[L.Callback] = ()) -> Result:
    """Train the student that `cfg` describes and leave a complete run folder in `cfg.paths.run`.

    Args:
        cfg: the composed config, as `configs/train.yaml` lays it out.
        overrides: the command line's own part of it: kept in the record.
        callbacks: more of them, beside those of the config; they are called in this process only.

    Raises:
        UserError: before anything is trained, if config, data, networks or losses do not fit together; or when
            training itself breaks off (NaN). The run is then recorded as failed.
        SystemExit: on SIGTERM (143), and on Ctrl-C during the fit (1). The run is recorded as failed, too.
    """
    check(cfg, overrides)
    folder = Path(cfg.paths.run)
    identity = config_hash(plain(cfg))
    if not cfg.resume:
        refuse_overwriting(folder, identity)
    checkpoint = last_checkpoint(folder) if cfg.resume else None
    position = Position.saved(checkpoint)
    with cpu_threads(cfg):
        sequence = StageSequence(cfg)
        prepare(sequence, position, show=cfg.trainer.enable_progress_bar and is_main())
        whole = sequence.config()
        record = describe(sequence, identity, overrides)
        if cfg.resume:
            record = continued(record, folder)
        with (
            Termination(folder) as termination,
            tracked(whole, record, folder) as loggers,
            recorded(record, sequence, folder) as failed,
            ranks(sequence.given, failed) as all_ranks,
        ):
            stages = ProgressiveDistillation(sequence, position)
            own = [*callbacks, SameJob(config_hash(plain(sequence.given))), *objective_callbacks(cfg)]
            own += [Timeline(record.timeline), Resumption(lambda: stages.ended), RandomState()]
            trainer = make_trainer(whole, loggers, own, first=[termination, *([stages] if sequence.several else [])])
            data = StagedData(stages) if sequence.several else sequence.parts.data
            trainer.fit(sequence.parts.distiller, datamodule=data, ckpt_path=checkpoint)
            done = trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
            if sequence.several:
                stages.refuse_unfinished(done)
            sequence.gather()
            all_ranks.join()  # the splits are scored by one process: each sample exactly once
            if is_main():
                score_run(record, sequence.parts, done, folder, sequence.teachers(), sequence.ensemble())
                log_scores(loggers, record, trainer.global_step)
                record.status = "finished"
    return Result(record, sequence.parts, folder)


def refuse_overwriting(folder: Path, identity: str) -> None:
    """Refuse a new run in the folder of a finished one of another config: it would take its place."""
    if not (folder / RECORD).is_file():
        return
    before = RunRecord.read(folder)
    if before.status == "finished" and before.config_hash != identity:
        raise UserError(
            f"{folder} holds a finished run of another config, which this one would replace. Remove that folder, or "
            "give this run one of its own, hydra.run.dir=…"
        )


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as plain data."""
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def prepare(sequence: StageSequence, position: Position, show: bool) -> None:
    """Build the parts of the stage at the position; of a new run with stages all of them once, before the first.

    Args:
        show: print the plan.
    """
    if sequence.several and position == Position():
        sequence.rehearse(show)
    sequence.begin(position.place, position.students)
    if show and not sequence.several:
        show_plan(sequence.parts)


@contextmanager
def cpu_threads(cfg: DictConfig) -> Iterator[None]:
    """Within: torch computes with `cfg.threads` threads, or with this process's share of the cores.

    Sums, and so weights, differ in their last bits with another number.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(cfg.threads or max(1, before // processes(cfg.trainer)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe(sequence: StageSequence, identity: str, overrides: Sequence[str]) -> RunRecord:
    """What is known of a run before it starts."""
    cfg, data, task = sequence.parts.cfg, sequence.data(-1), sequence.parts.distiller.task
    return RunRecord(
        name=cfg.name,
        method=cfg.method,
        seed=cfg.seed,
        config_hash=identity,
        overrides=list(overrides),
        git=git_state(CONFIGS.parent),
        environment=environment(),
        data={
            "name": data.name,
            "fingerprint": data.fingerprint,
            "num_classes": len(data.classes),
            "classes": list(data.classes),
            "score_name": task.score,
            "higher_is_better": task.higher_is_better,
            "score_range": list(task.score_range),
            "remarks": list(data.remarks),
            **data.sizes,
        },
        sources=sequence.sources(),
    )


def continued(record: RunRecord, folder: Path) -> RunRecord:
    """`record` as that of the run in `folder`, which goes on: still the job that was started, from the same sources."""
    before = RunRecord.read(folder)
    for source, sha256 in record.sources.items():
        if before.sources.get(source, sha256) == sha256:
            continue
        stage, _, name = source.partition(":")
        told = f"the data of {record.data['name']} are not those" if name == "data" else f"{name} is not the network"
        raise UserError(
            f"{folder} cannot be resumed: {f'in stage {stage!r} ' if stage else ''}{told} that it was started with. "
            f"Put back what was there, point {'data.root' if name == 'data' else f'{name}.weights'} of its config.yaml "
            "to it, or start a new run."
        )
    kept = {name: getattr(before, name) for name in ("config_hash", "overrides", "started", "seconds")}
    return replace(record, **kept, sources=record.sources | before.sources)


@contextmanager
def recorded(record: RunRecord, sequence: StageSequence, folder: Path) -> Iterator[Callable[[str], None]]:
    """Keeps the run folder true: config and record from the first moment, the error if it ends in one.

    Within: a function that records the error of a run which is about to be ended without an exception.
    What a former run left there is removed: its best checkpoint, say, would be taken for this run's.
    """
    start = time.monotonic() - (record.seconds or 0)

    def write() -> None:
        record.seconds = round(time.monotonic() - start, 3)
        if is_main():
            record.write(folder)

    def failed(error: str) -> None:
        record.status, record.error = "failed", error
        write()

    if is_main():
        remove_unfinished(folder)
        if not sequence.given.resume:
            for name in (CHECKPOINTS, STAGES):
                shutil.rmtree(folder / name, ignore_errors=True)
            for name in (STUDENT, PREDICTIONS):
                (folder / name).unlink(missing_ok=True)
        save_config(sequence.config(), folder)
        record.write(folder)  # after the config, without which a run cannot be resumed
    try:
        yield failed
    except BaseException as error:
        reason = (error.__context__ or error) if isinstance(error, SystemExit) else error  # Ctrl-C, SIGTERM
        failed(f"{type(reason).__name__}: {reason}")
        raise
    else:
        write()


def make_trainer(
    cfg: DictConfig, loggers: Sequence[Logger], callbacks: Sequence[L.Callback], first: Sequence[L.Callback] = ()
) -> L.Trainer:
    """Lightning's Trainer with the config's callbacks, without its remarks on what it sees.

    `first` are called before the config's, `callbacks` after them.

    Raises:
        UserError: settings that Lightning refuses, or hardware that is not there.
    """
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.distributed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval")  # TermMonitor logs each epoch
    warnings.filterwarnings("ignore", message=".*does not have many workers")  # images in memory need none
    warnings.filterwarnings("ignore", message=".*exists and is not empty")  # nor is a resumed run's folder
    warnings.filterwarnings("ignore", message=".*module.* in eval mode at the start")  # an average of the student is
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")  # Lightning's own use of torch
    callbacks = [*first, *_made(cfg.callbacks), *callbacks]
    # The last checkpoint after all others: what it stores of them would be that of the epoch before, and a run that
    # was killed between the two would go on without the other.
    callbacks.sort(key=lambda each: (isinstance(each, ModelCheckpoint), isinstance(each, LastCheckpoint)))
    try:
        settings = dict(instantiate(cfg.trainer))
        plugins = [WholeCheckpoints(), *settings.pop("plugins", [])]
        return L.Trainer(
            **settings,
            plugins=plugins,
            logger=loggers,
            callbacks=callbacks,
            default_root_dir=cfg.paths.run,
            use_distributed_sampler=False,  # the data module's own sampler gives each rank its share
            enable_model_summary=False,
            enable_checkpointing=any(isinstance(each, ModelCheckpoint) for each in callbacks),  # or Lightning makes one
        )
    except (MisconfigurationException, ModuleNotFoundError, TypeError, ValueError) as error:
        raise UserError(
            f"Lightning refuses the settings under `trainer`: {error} hardware=cpu runs on any machine."
        ) from error


def objective_callbacks(cfg: DictConfig) -> list[L.Callback]:
    """Those that change the objective's numbers during training."""
    balance = [Balance(cfg.objective.balance_steps, Path(cfg.paths.run))] if cfg.objective.balance else []
    return [FollowSchedules(), *balance]


def _made(configs: Mapping[str, Any]) -> list[Any]:
    """Instances of those that were not set to null."""
    return [instantiate(config) for config in configs.values() if config is not None]
