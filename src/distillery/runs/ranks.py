"""One process per device: the first starts the others and hands them the very config that it trains.

Lightning's launcher would repeat `sys.argv`. Under `-m` that is the whole sweep: each rank would go through all jobs,
and where a sweeper or a resolver draws values (`${now:}`), each rank would train with others. A study, or a program
that composes its own config, has no command line to repeat. torchrun starts rank 0 in a new process as well, where
neither a study's progress bar nor the `Result` of `train` could follow it. Therefore this process stays rank 0; every
other rank reads the job's resolved config from a file. Lightning then finds `LOCAL_RANK` set and starts nothing.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import LightningEnvironment, find_free_network_port
from lightning.fabric.plugins.environments.lsf import LSFEnvironment
from lightning.fabric.plugins.environments.mpi import MPIEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from omegaconf import DictConfig, OmegaConf

from distillery.core.errors import UserError
from distillery.core.kinds import shown
from distillery.core.process import is_main, processes
from distillery.results.record import config_hash
from distillery.runs.job import plain

LAUNCHERS = (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment)  # those Lightning looks for
VARIABLES = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PARENT = "DISTILLERY_PARENT"  # process id of the rank that started this one
GRACE = 5.0  # seconds
_decisions = itertools.count()  # of this process, in the same order on all ranks


@dataclass
class Child:
    """Another rank on this machine. What it prints goes to the file `output` and is shown only if the rank fails."""

    rank: int
    process: subprocess.Popen[bytes]
    output: Path


class Ranks:
    """The ranks that this process has started: none if there is one device, or if a launcher has started them all.

    Args:
        children: the other ranks.
        failed: called with the error if this process hangs and has to be ended.
    """

    def __init__(self, children: Sequence[Child], failed: Callable[[str], None]) -> None:
        self._children = children
        self._failed = failed
        self._ended = threading.Event()
        if children:
            threading.Thread(target=self._watch, daemon=True).start()

    def join(self) -> None:
        """Leave the process group after the fit, and wait for the other ranks to do the same.

        Raises:
            UserError: one of them has failed.
        """
        _leave_group()
        if failure := self.failure(60):
            raise UserError(failure)

    def failure(self, seconds: float) -> str | None:
        """Which rank has failed, and the end of its output; None if none fails within this time, or all have ended."""
        until = time.monotonic() + seconds
        while True:
            codes = [child.process.poll() for child in self._children]
            for child, code in zip(self._children, codes, strict=True):
                if code:
                    lines = child.output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                    return "\n".join([f"Rank {child.rank} ended with exit code {code}, and so the job:", *lines[-40:]])
            if None not in codes or time.monotonic() > until:
                return None
            time.sleep(0.05)

    def end(self) -> None:
        """End all processes of the job that are still running."""
        self._ended.set()
        _leave_group()
        for child in self._children:
            child.process.terminate()
        for child in self._children:
            try:
                child.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()

    def _watch(self) -> None:
        """End this process if another rank fails: it may wait for it in a collective operation, out of reach."""
        while not self._ended.wait(0.5):
            failure = self.failure(0)
            if failure and not self._ended.wait(GRACE):  # time for an error of its own
                self._failed(failure)
                sys.stdout.flush()
                print(f"error {failure}", file=sys.stderr, flush=True)
                for child in self._children:
                    child.process.kill()
                    shutil.rmtree(child.output.parent, ignore_errors=True)
                os._exit(1)


@contextmanager
def ranks(cfg: DictConfig, failed: Callable[[str], None]) -> Iterator[Ranks]:
    """Within: every rank of the job runs. Afterwards neither process group, environment variables nor processes remain.

    Args:
        cfg: the job's config, which every rank trains.
        failed: called with the error before this process is ended, if it waits for a rank that has failed.

    Raises:
        UserError: settings that do not work on several processes; or another rank failed first (with its output).
    """
    count = processes(cfg.trainer)
    if count > 1:
        _refuse(cfg.trainer)
    if parent := os.environ.pop(PARENT, None):
        threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    with ExitStack() as stack:
        stack.enter_context(_restored_environment())
        children: list[Child] = []
        if count > 1 and "LOCAL_RANK" not in os.environ and not any(launcher.detect() for launcher in LAUNCHERS):
            children = _start(cfg, count, Path(stack.enter_context(TemporaryDirectory(prefix="distillery-"))))
        group = Ranks(children, failed)
        try:
            yield group
        except UserError:
            raise  # this rank knows the reason, and the others would repeat it
        except Exception as error:
            if failure := group.failure(GRACE):
                raise UserError(failure) from error
            raise
        finally:
            group.end()


def refuse_torchrun(trainer: DictConfig) -> None:
    """Refuse to be one of another number of processes than the settings say: they would wait for those that are not.

    Raises:
        UserError: torchrun has started more or fewer.
    """
    if not TorchElasticEnvironment.detect():
        return
    started, nodes = TorchElasticEnvironment().world_size(), int(trainer.get("num_nodes", 1))
    if started != (wanted := processes(trainer) * nodes):
        raise UserError(
            f"torchrun has started {started} process(es), but trainer.devices={shown(trainer.devices)} and "
            f"trainer.num_nodes={nodes} make {wanted}. Set trainer.devices to its --nproc-per-node and "
            "trainer.num_nodes to its --nnodes, with hardware=ddp or fsdp2."
        )


def of_first_rank(cfg: DictConfig, decide: Callable[[], Any]) -> Any:
    """What `decide` returns on the first rank, on each of the ranks that a launcher has started; JSON.

    It is called there alone, before there is a process group. Ranks that this package starts are handed a config in
    which all is decided.
    """
    count = processes(cfg.trainer) * int(cfg.trainer.get("num_nodes", 1))
    launcher = next((each() for each in LAUNCHERS if each.detect()), None)
    if count == 1 or (launcher is None and "LOCAL_RANK" not in os.environ):
        return decide()
    environment = launcher or LightningEnvironment()
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # by torchrun itself, for all jobs of the ranks
    store = dist.TCPStore(  # type: ignore[attr-defined]  # torch does not list it
        environment.main_address, environment.main_port, is_master=is_main() and not served, timeout=timedelta(days=1)
    )
    attempt = f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}.{next(_decisions)}"
    if not is_main():
        decided = json.loads(store.get(f"decided {attempt}"))
        with suppress(RuntimeError):  # until the first rank has closed its store: what comes next would meet it there
            store.add(f"read {attempt}", 1)
            while not served:
                store.wait([f"closed {attempt}"])
        return decided
    decided = decide()
    store.set(f"decided {attempt}", json.dumps(decided))
    while store.add(f"read {attempt}", 0) < count - 1:
        time.sleep(0.05)
    return decided


class SameJob(L.Callback):
    """Refuses ranks that train different jobs: a launcher such as torchrun may have started a sweep in each of them.

    Raises:
        UserError: rank 0 has another one.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self._identity = config_hash(plain(cfg))

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.strategy.broadcast(self._identity) != self._identity:
            raise UserError(
                f"Rank {trainer.global_rank} was started with another config than rank 0. Start every rank with the "
                "same settings. A sweep (-m) starts the ranks of its jobs itself, without torchrun."
            )


def _start(cfg: DictConfig, count: int, place: Path) -> list[Child]:
    """Start the ranks from 1 on; for this process, rank 0, only set the environment variables."""
    nodes = cfg.trainer.get("num_nodes", 1)
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port()), "NODE_RANK": "0"}
    os.environ.update({name: os.environ.get(name, value) for name, value in meeting.items()})
    os.environ.update(LOCAL_RANK="0", WORLD_SIZE=str(count * nodes))
    job = plain(cfg) | {"replace": True}  # rank 0 has decided on the run folder; a resumed run has `resume` set
    OmegaConf.save(OmegaConf.create(job), place / "job.yaml")
    command = [sys.executable, "-m", "distillery.commands.train", "--config-path", str(place), "--config-name", "job"]
    children = []
    for rank in range(1, count):
        output = place / f"rank{rank}.txt"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [*command, f"hydra.run.dir='{place}'"],
                env={**os.environ, "LOCAL_RANK": str(rank), PARENT: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        children.append(Child(rank, process, output))
    return children


def _refuse(trainer: DictConfig) -> None:
    if str(trainer.strategy).endswith(("spawn", "fork", "notebook")):
        raise UserError(f"trainer.strategy={trainer.strategy} starts its own processes. Choose ddp.")
    if trainer.sync_batchnorm and (trainer.accelerator == "cpu" or not torch.cuda.is_available()):
        raise UserError(
            "trainer.sync_batchnorm=true works on GPUs only. On a CPU each process takes its batch statistics from its "
            "own share of a batch; student.net.norm=group has none."
        )


def _end_with(parent: int) -> None:
    """End this rank when rank 0 is killed: it would wait for it, or keep a GPU busy."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _leave_group() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def _restored_environment() -> Iterator[None]:
    """Undo what Lightning and this module set for a job, so that it does not reach the next job."""
    before = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    try:
        yield
    finally:
        for name in VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(before)
