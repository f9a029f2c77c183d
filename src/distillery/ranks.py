"""One process a device: starts the other ranks of a job with the job's own overrides.

Lightning would start them by repeating `sys.argv`. Under `-m` that is the whole sweep, so that each rank walks
through jobs of its own, and with a sampling sweeper each trains other hyper-parameters. Here the ranks get exactly
what the job composed; Lightning then finds `LOCAL_RANK` set and starts nothing.
"""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from omegaconf import DictConfig, ListConfig

VARIABLES = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
ELSEWHERE = ("LOCAL_RANK", "SLURM_NTASKS")  # torchrun or SLURM has started the ranks already


class Ranks:
    """The other ranks of a job, from their start to their end."""

    def __init__(self, children: Sequence[subprocess.Popen[bytes]]) -> None:
        self._children = children
        self._ended = threading.Event()
        if children:
            threading.Thread(target=self._watch, daemon=True).start()

    def end(self) -> None:
        """Leave the process group, wait for the other ranks, and clear what the next job must not find."""
        if self._ended.is_set():
            return
        self._ended.set()
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
        for child in self._children:
            try:
                child.wait(timeout=60)
            except subprocess.TimeoutExpired:
                child.kill()
        if self._children:
            for name in VARIABLES:
                os.environ.pop(name, None)

    def _watch(self) -> None:
        """A rank that fails would leave the others waiting for ever: end the job instead, as Lightning does."""
        while not self._ended.wait(0.5):
            failed = [(i, c.returncode) for i, c in enumerate(self._children, 1) if c.poll() not in (None, 0)]
            if failed and not self._ended.wait(5):  # time for this rank to say why itself
                rank, code = failed[0]
                print(
                    f"Rank {rank} ended with exit code {code}: see its message above.",
                    file=sys.stderr,
                    flush=True,
                )
                for child in self._children:
                    child.kill()
                os._exit(1)


@contextmanager
def ranks(trainer: DictConfig, overrides: Sequence[str], run: Path) -> Iterator[Ranks]:
    """Within: every rank of the job runs. Afterwards: no process group, no variable, no process is left of them.

    Args:
        trainer: `cfg.trainer`; its `devices` says how many processes.
        overrides: the job's own, as Hydra composed it: no sweep in them.
        run: the job's folder.
    """
    group = Ranks(_start(_processes(trainer), overrides, run))
    try:
        yield group
    finally:
        group.end()


def _start(count: int, overrides: Sequence[str], run: Path) -> list[subprocess.Popen[bytes]]:
    if count == 1 or any(name in os.environ for name in ELSEWHERE):
        return []
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port()), NODE_RANK="0", LOCAL_RANK="0")
    os.environ["WORLD_SIZE"] = str(count)
    command = [
        sys.executable,
        "-m",
        "distillery.train",
        *overrides,
        "hydra.mode=RUN",
        f"hydra.run.dir='{run}'",
    ]
    return [
        subprocess.Popen([*command, f"hydra.job.name=rank{rank}"], env={**os.environ, "LOCAL_RANK": str(rank)})
        for rank in range(1, count)
    ]


def is_main() -> bool:
    """Whether this process is the job's first: the one that writes the run folder."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0 and int(os.environ.get("NODE_RANK", 0)) == 0


def _processes(trainer: DictConfig) -> int:
    devices = trainer.devices
    if isinstance(devices, ListConfig):
        return len(devices)
    if devices in ("auto", -1, "-1"):
        return max(1, torch.cuda.device_count()) if trainer.accelerator in ("gpu", "cuda", "auto") else 1
    return int(devices)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
