"""FSDP2: trained parameters, their gradients and optimizer states are sharded between the processes."""

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from distillery.models.blocks import blocks
from distillery.models.taps.network import Network


class FSDP2(ModelParallelStrategy):
    """Lightning's strategy with all processes in one data-parallel group and whole checkpoints in one file.

    Any number of processes can read such a checkpoint, and so can everything that reads those of other strategies.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes  # Lightning's `auto` is the number of nodes
        super().setup_environment()


def shard(student: Network, objective: nn.Module, mesh: DeviceMesh) -> None:
    """Shard the student, block by block, and the parameters of the losses: all that the optimizer sees.

    A block is gathered while it runs.
    """
    for module in (*blocks(student.net), student, objective):
        if next(module.parameters(), None) is not None:
            fully_shard(module, mesh=mesh)


def is_sharded(module: nn.Module) -> bool:
    """Whether each process holds only its shard of the parameters."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def whole_state(module: nn.Module) -> dict[str, Any]:
    """The state dict with whole tensors, on every process. If the module is sharded, all processes must call this."""
    if not is_sharded(module):
        return module.state_dict()
    return get_model_state_dict(module, options=StateDictOptions(full_state_dict=True))


def share_buffers(module: nn.Module) -> None:
    """Broadcast the first process's floating-point buffers (BatchNorm's statistics), as DDP does."""
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    if not buffers:
        return
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    dist.broadcast(flat, src=0)
    for buffer, value in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(value.view_as(buffer))


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor; the tensor itself, if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
