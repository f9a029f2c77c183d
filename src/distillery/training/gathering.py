"""`gather=true`: a loss on the relations of a batch compares the samples of all ranks, as on one process."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from distillery.losses.signals import Signals, is_parameter
from distillery.losses.term import Term

Given = tuple[Signals, Signals, Mapping[str, Tensor]]


def gathered(term: Term, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Given:
    """The inputs of the term with the rows of all ranks: layers, masks, labels, indices, and logits if it reads them.

    Everything else is left out, so that a term that reads it fails instead of mixing rows.
    """
    tensors: dict[tuple[str, str], Tensor] = {}
    for role, signals, taps in (("student", student, term.student_taps), ("teacher", teacher, term.teacher_taps)):
        tensors |= {(role, tap): signals.layers[tap] for tap in taps if not is_parameter(tap)}
        if term.needs_logits:
            tensors[role, "logits:"] = signals.logits  # no tap ends in a colon
        if signals.mask is not None:
            tensors[role, "mask:"] = signals.mask
    tensors |= {("batch", key): batch[key] for key in ("target", "index") if batch.get(key) is not None}
    whole = dict(zip(tensors, all_rows(list(tensors.values())), strict=True))

    def signals_of(role: str, own: Signals, taps: Sequence[str]) -> Signals:
        layers = {tap: whole.get((role, tap), own.layers[tap]) for tap in taps}
        return Signals(whole.get((role, "logits:"), own.logits), layers, mask=whole.get((role, "mask:")))

    return (
        signals_of("student", student, term.student_taps),
        signals_of("teacher", teacher, term.teacher_taps),
        {key: tensor for (role, key), tensor in whole.items() if role == "batch"},
    )


def all_rows(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The rows of all ranks of each tensor, in the order they have on one process. Every rank must call this.

    Ranks may have different numbers of rows: as in `SeededBatchSampler`, each rank in turn holds the next row. The
    gradient of a row is summed over the ranks. Its mean over ranks, which DDP computes, is then the gradient of the
    mean of the ranks' losses, and of the one loss where all ranks compute the same.

    Raises:
        ValueError: the rows of two ranks have different shapes.
    """
    shapes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shapes, [tuple(tensor.shape) for tensor in tensors], group=_host(dist.group.WORLD))
    found: list[Tensor] = []
    for tensor, of_ranks in zip(tensors, zip(*shapes, strict=True), strict=True):
        if len({shape[1:] for shape in of_ranks}) > 1:
            raise ValueError(f"gather=true: the ranks' rows differ in shape, {[list(shape) for shape in of_ranks]}")
        found.append(_AllRows.apply(tensor, [shape[0] for shape in of_ranks]))
    return found


@lru_cache(maxsize=1)
def _host(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """A group that communicates through the CPU: exchanging shapes must not wait for the forward pass on the GPU."""
    if dist.get_backend(world) != "nccl":
        return world
    host = dist.new_group(backend="gloo")
    assert isinstance(host, dist.ProcessGroup)
    return host


class _AllRows(torch.autograd.Function):
    """This rank's rows and the numbers of rows of all ranks → the rows of all ranks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        # [rows, ranks]: which ranks have a first row, a second one, …
        held = torch.arange(max(counts))[:, None] < torch.tensor(counts)
        in_turn, ctx.ranks = held.nonzero(as_tuple=True)
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        of_ranks = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(of_ranks, padded)
        return torch.stack(of_ranks, 1)[in_turn, ctx.ranks]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[ctx.ranks == dist.get_rank()], None
