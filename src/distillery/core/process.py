"""Which process of a job this is, and how many there are."""

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from distillery.core.errors import UserError

NUMBERS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


def world_size() -> int:
    """How many ranks train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the job's first: the one that writes the run folder."""
    return all(int(os.environ.get(name, 0)) == 0 for name in NUMBERS)


def processes(trainer: Any) -> int:
    """How many of them the job has on this machine: one for each of `trainer.devices`."""
    devices = trainer.devices
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return len(devices)
    if devices in (None, "auto", -1, "-1"):
        return max(1, torch.cuda.device_count()) if trainer.accelerator in ("gpu", "cuda", "auto") else 1
    try:
        return len(devices.strip(",").split(",")) if "," in str(devices) else int(devices)
    except ValueError:
        raise UserError(f"trainer.devices={devices}: give a number, a list of GPUs, or auto.") from None
