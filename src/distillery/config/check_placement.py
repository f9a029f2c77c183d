"""Refuses a `teachers.<name>.placement` that this machine or the rest of the run does not allow."""

from collections.abc import Mapping
from typing import Any

import torch

from distillery.config.check_cuda import GRAPHS
from distillery.config.check_strategy import is_fsdp2
from distillery.core.errors import UserError, did_you_mean
from distillery.teachers.shards import SHARD


def devices() -> list[str]:
    """The devices of this machine, by the names that torch gives them."""
    count, accelerator = torch.accelerator.device_count(), torch.accelerator.current_accelerator()
    if not count or accelerator is None:
        return ["cpu"]
    return ["cpu", accelerator.type, *(f"{accelerator.type}:{number}" for number in range(count))]


def refuse_device(path: str, node: Mapping[str, Any]) -> None:
    """Refuse a device that is not there.

    Args:
        path: the path of the teacher's settings `node`.
    """
    placement, known = node.get("placement"), [*devices(), SHARD]
    if placement is not None and placement not in known:
        raise UserError(f"{path}.placement={placement}: there is no such device here." + did_you_mean(placement, known))


def refuse_placements(plain: Mapping[str, Any]) -> None:
    """Refuse what does not go together with a teacher on a device of its own, or divided between processes."""
    for name, node in plain["teachers"].items():
        placement = node.get("placement")
        setting = f"teachers.{name}.placement={placement}"
        if placement is not None and plain["compile"] == GRAPHS:
            raise UserError(f"{setting}: compile={GRAPHS} is for networks on one device. Set compile=true or false.")
        if placement != SHARD:
            continue
        if not is_fsdp2(plain["trainer"].get("strategy")):
            raise UserError(
                f"{setting} divides the teacher between the processes of hardware=fsdp2. Choose that, or placement=cpu."
            )
        if node.get("precision") in ("int8", "int4"):
            raise UserError(f"{setting} cannot divide weights with scales. Set teachers.{name}.precision=bf16 or null.")
        if node.get("cache"):
            raise UserError(
                f"{setting}: with a cache the teacher does not run in each step. Set teachers.{name}.placement=null."
            )
        if plain["compile"]:
            raise UserError(f"{setting} gathers each block as it runs, which cannot be compiled. Set compile=false.")
