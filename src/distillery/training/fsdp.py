"""FSDP2: parameters, gradients and optimizer states of what is trained, shared out between the processes."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from distillery.models.taps.network import Network


class FSDP2(ModelParallelStrategy):
    """Lightning's strategy with all processes in one data-parallel group, and whole checkpoints in one file.

    So a checkpoint is read by any number of processes, and by everything that reads the others.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes  # Lightning's `auto` is the number of nodes
        super().setup_environment()


def shard(student: Network, objective: nn.Module, mesh: DeviceMesh) -> None:
    """Share out the student, block by block, and what the losses train: all that one optimizer sees is sharded.

    A block is gathered when it runs, and let go of afterwards.
    """
    for module in (*_blocks(student.net), student, objective):
        if next(module.parameters(), None) is not None:
            fully_shard(module, mesh=mesh)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """What the outermost lists and sequences of layers consist of."""
    for child in module.children():
        yield from child.children() if isinstance(child, nn.ModuleList | nn.Sequential) else _blocks(child)


def is_sharded(module: nn.Module) -> bool:
    """Whether a process holds only its part of the parameters."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def whole_state(module: nn.Module) -> dict[str, Any]:
    """The state dict with whole tensors, on every process; where it is sharded, to be called by all of them."""
    if not is_sharded(module):
        return module.state_dict()
    return get_model_state_dict(module, options=StateDictOptions(full_state_dict=True))


def share_buffers(module: nn.Module) -> None:
    """Give every process the first one's buffers of floating point, as DDP does: BatchNorm's statistics, above all."""
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    if not buffers:
        return
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    dist.broadcast(flat, src=0)
    for buffer, value in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(value.view_as(buffer))


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds: all of it, unless it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
