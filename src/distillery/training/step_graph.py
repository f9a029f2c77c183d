"""A training step as one CUDA graph: forwards, losses and backward are a single launch."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.data.module import Data
from distillery.losses.signals import Signals
from distillery.losses.term import Term
from distillery.tasks.task import Batch, Task

INSTEAD = "Set step_graph=false; compile=reduce-overhead makes graphs of the networks alone."
WARM_UP = 3  # steps in which libraries choose kernels and allocate what a recording could not


class StepGraph:
    """Records the kernels of a training step, up to the gradients, and replays them for the batches that follow.

    A step is recorded when `WARM_UP` steps of the same shapes and numbers have run before it. Nothing is computed while
    it is recorded, and nothing twice: the values are those of steps that run as they are. Other steps, as that of a
    smaller last batch, run as they are.

    A replay does on the device what the recorded step did there, and nothing of what Python did. What Python decides
    must be among the `numbers`, or must not change until `forget`.
    """

    def __init__(self) -> None:
        self._kind: Hashable = None  # shapes and numbers of the last step
        self._alike = 0  # steps of this kind in a row
        self.forget()

    def forget(self) -> None:
        """Record the next step anew."""
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._gradients: list[tuple[nn.Parameter, Tensor]] = []
        self._output: dict[str, Any] = {}

    def __call__(
        self,
        step: Callable[[Batch, Mapping[str, Signals]], dict[str, Any]],
        batch: Batch,
        looked_up: Mapping[str, Signals],
        numbers: Hashable,
        parameters: Iterable[nn.Parameter],
    ) -> dict[str, Any] | None:
        """What the step gives, once its gradients are those of the parameters; None: it has to be run as it is.

        The tensors, gradients among them, are overwritten by the next replay.

        Args:
            step: computes losses and gradients. It must not wait for the device.
            looked_up: signals that are known before the step, by teacher.
            numbers: what the losses read besides tensors.

        Raises:
            UserError: the step cannot be recorded.
        """
        given = [*batch.values(), *tensors_of(looked_up.values())]
        kind = numbers, tuple((tensor.shape, tensor.dtype) for tensor in given)
        self._alike = self._alike + 1 if kind == self._kind else 1
        if kind != self._kind:
            self._kind = kind
            self.forget()
        if self._alike <= WARM_UP:
            return None
        if self._graph is None:
            self._record(step, batch, looked_up, [*parameters])
        for own, tensor in zip(self._inputs, given, strict=True):
            own.copy_(tensor)
        assert self._graph is not None
        self._graph.replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient  # a callback may have set it to None
        return self._output

    def _record(
        self,
        step: Callable[[Batch, Mapping[str, Signals]], dict[str, Any]],
        batch: Batch,
        looked_up: Mapping[str, Signals],
        parameters: Sequence[nn.Parameter],
    ) -> None:
        batch = {name: tensor.clone() for name, tensor in batch.items()}
        looked_up = {name: signals.each(torch.clone) for name, signals in looked_up.items()}
        for parameter in parameters:
            parameter.grad = None  # or the recorded backward would add to what is there
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads load data
                output = step(batch, looked_up)
        except RuntimeError as error:
            # that the recording cannot be ended comes of what went wrong in it
            first = error.__context__ if isinstance(error.__context__, RuntimeError) else error
            raise UserError(
                f"step_graph=true: this step cannot be recorded as a CUDA graph: {str(first).splitlines()[0]}\n"
                "In a step that is recorded, nothing may wait for the device (.item(), .cpu(), a tensor of a list) or "
                f"have a shape that depends on values (a boolean mask). {INSTEAD}"
            ) from error
        self._inputs = [*batch.values(), *tensors_of(looked_up.values())]
        self._gradients = [(each, each.grad) for each in parameters if each.grad is not None]
        self._graph, self._output = graph, output


def tensors_of(signals: Iterable[Signals]) -> list[Tensor]:
    """All tensors of the signals, always in the same order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    for each in signals:
        each.each(note)
    return found


def refuse_unrecordable(task: Task, data: Data, terms: Mapping[str, Term]) -> None:
    """Refuse tasks, data and losses whose steps `StepGraph` cannot record.

    Raises:
        UserError: a step has shapes that depend on labels, or a loss counts its steps on the host.
    """
    if task.rows_are not in ("samples", "spans"):
        raise UserError(
            f"step_graph=true: how many {task.rows_are} of a batch count depends on its labels, and a CUDA graph has "
            f"fixed shapes. {INSTEAD}"
        )
    if data.unlabelled:
        raise UserError(
            "step_graph=true: how many samples of a batch have a label differs between batches, and a CUDA graph has "
            f"fixed shapes. {INSTEAD}"
        )
    if counting := [name for name, term in terms.items() if term.counts_batches]:
        raise UserError(
            f"step_graph=true: loss.{counting[0]} draws or decides by the number of batches that it has seen, and a "
            f"CUDA graph repeats what it did once. {INSTEAD}"
        )
