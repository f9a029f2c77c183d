"""The parameters of a frozen network, divided between the processes: a block is whole only while it runs."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from distillery.core.process import rank, world_size
from distillery.models.blocks import blocks

SHARD = "shard"  # the placement of a teacher whose parameters are divided
ALIGNED = 64  # each parameter begins at a multiple of so many numbers, as kernels want it


class Shards(nn.Module):
    """This process's share of the parameters of a frozen network. All processes must run the network equally often.

    A block (see `blocks`) is gathered before it runs, and released after it; the parameters of no block, or of several,
    while the network runs. FSDP2's `fully_shard` does the same for networks that are trained, but cannot be undone, and
    a teacher is scored as a whole network after the training, by one process.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        parts = [*dict.fromkeys(blocks(net))]
        inside = {module for part in parts for module in part.modules()}
        outside = dict.fromkeys(p for each in net.modules() if each not in inside for p in each.parameters(False))
        owners = Counter(p for own in (*(part.parameters() for part in parts), outside) for p in own)
        of_parts = [(part, [p for p in part.parameters() if owners[p] == 1]) for part in parts]
        taken = {p for _, own in of_parts for p in own}
        self._all = [
            _Unit(module, [*same])
            for module, own in (*of_parts, (net, [p for p in net.parameters() if p not in taken]))
            for _, same in groupby(sorted(own, key=_dtype), key=_dtype)
        ]
        self.units = nn.ModuleList(self._all)  # so that they move with the teacher

    def undo(self) -> None:
        """Whole parameters again, on the CPU of each process; all processes must call this."""
        for unit in self._all:
            unit.undo()


class _Unit(nn.Module):
    """Parameters of one data type, which are gathered together while `module` runs."""

    shard: Tensor  # [N], of the flattened and padded parameters

    def __init__(self, module: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self._of_network = [*parameters]  # in a list they are not registered: they belong to the network
        self._shapes = [parameter.shape for parameter in parameters]
        flat = torch.cat([F.pad(each.detach().flatten(), (0, -each.numel() % ALIGNED)) for each in parameters])
        length = -(-len(flat) // world_size())
        own = flat[rank() * length : (rank() + 1) * length]
        self.register_buffer("shard", F.pad(own, (0, length - len(own))).clone())
        self._release()
        self._hooks = [
            module.register_forward_pre_hook(lambda *_: self._gather(), prepend=True),
            module.register_forward_hook(lambda *_: self._release(), always_call=True),  # also if it ends at a last tap
        ]

    def _gather(self) -> None:
        flat = self.shard.new_empty(len(self.shard) * world_size())
        dist.all_gather([*flat.chunk(world_size())], self.shard)
        begin = 0
        for parameter, shape in zip(self._of_network, self._shapes, strict=True):
            parameter.data = flat[begin : begin + shape.numel()].view(shape)
            begin += shape.numel() + -shape.numel() % ALIGNED

    def _release(self) -> None:
        for parameter in self._of_network:
            parameter.data = self.shard.new_empty(0)

    def undo(self) -> None:
        """See `Shards`."""
        self._gather()
        for parameter in self._of_network:
            parameter.data = parameter.data.to("cpu", copy=True)
        for hook in self._hooks:
            hook.remove()


def _dtype(parameter: nn.Parameter) -> str:
    return str(parameter.dtype)
