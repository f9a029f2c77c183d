"""Which process of a job this is, and how many there are."""

import os
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
NUMBERS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


def world_size() -> int:
    """The number of ranks that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process among them."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process is the job's first: the one that writes the run folder."""
    return all(int(os.environ.get(name, 0)) == 0 for name in NUMBERS)


def cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes(trainer: Any) -> int:
    """How many processes the job has on this machine: one for each of the (checked) `trainer.devices`."""
    devices = trainer.devices
    if devices in (None, "auto", -1, "-1"):
        return max(1, torch.cuda.device_count()) if trainer.accelerator in ("gpu", "cuda", "auto") else 1
    if isinstance(devices, str) and "," in devices:
        devices = devices.strip(",").split(",")
    return int(devices) if isinstance(devices, int | str) else len(devices)


def of_all_ranks(value: T) -> list[T]:
    """The value of each process, in their order; all must call this."""
    found = [value] * world_size()
    if len(found) > 1:
        dist.all_gather_object(found, value)
    return found
