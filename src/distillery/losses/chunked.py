"""Losses of rows through a large head, in chunks of rows: the logits [N,V] never exist all at once.

The gradients are formed together with the values, chunk by chunk. So nothing is computed twice, and the memory is that
of a chunk and of the gradients themselves.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distillery.core.numerics import at_least_float32, full_precision
from distillery.losses.levels import Headed
from distillery.losses.signals import Signals

Batch = Mapping[str, Tensor]
# (student's rows, teachers' rows by name, batch of these rows) → K losses, each a sum over the rows: [K]; or one, []
RowLosses = Callable[[Signals, Mapping[str, Signals], Batch], Tensor]
ROWS = 128


def sum_over_rows(
    losses: RowLosses,
    student: Headed,
    teachers: Mapping[str, Signals],
    batch: Batch,
    weights: Sequence[float] = (1.0,),
    rows: int = ROWS,
) -> tuple[Tensor, Tensor]:
    """Σ weight · loss of all rows, and the K losses [K] without their graph; at most `rows` rows at a time.

    Values and gradients by the student's hidden rows, weight and bias are those of all rows at once: to 1e-12 in
    float64, and to 1e-5 in float32, where sums are in another order. The gradient of a weight that has other uses is
    added to theirs, as always. Gradients cannot be differentiated again.

    Args:
        losses: are called with the rows of a chunk, which have `logits`, also where the teacher's were `headed`. They
            must treat each row alone and have no trained tensors of their own.
        teachers: logits, hidden rows and a head, or few classes, of N rows. They get no gradient.
        batch: what has not N rows is left out.
        rows: of a chunk. The default suits a CPU.
    """
    tensors = student.hidden, student.weight, student.bias
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in tensors):
        total, sums = _SumOverRows.apply(losses, student, teachers, batch, weights, rows, *tensors)
        return total, sums
    sums = _zeros(student, weights)
    for part, taught, own in _parts(student, teachers, batch, rows):
        sums += losses(Signals(part.logits()), taught, own)
    return (sums * sums.new_tensor(weights)).sum(), sums


def map_rows(
    function: Callable[[Signals, Batch], Mapping[str, Tensor]], signals: Signals, batch: Batch, rows: int | None
) -> dict[str, Tensor]:
    """What `function` gives of each row, by name: [N, ...].

    It is called with at most `rows` rows at a time; None: with all at once.

    Args:
        function: is given rows that have `logits`.
        signals: of N rows, such as `Task.rows` returns.
        batch: what has not N rows is left out of parts.
    """
    if rows is None:
        return dict(function(signals.computed(), batch))
    number = len(signals.logits if signals.headed is None else signals.headed.hidden)
    # Results are copied to where those of all rows will be. Small tensors that remain between the large ones of each
    # part keep glibc before 2.38 from reusing the memory of these (bug 14581): it could need gigabytes.
    found: dict[str, Tensor] = {}
    for start in range(0, max(number, 1), rows):
        part = slice(start, start + rows)
        for name, values in function(_part(signals, part).computed(), _of_rows(batch, number, part)).items():
            if name not in found:
                found[name] = values.new_empty(number, *values.shape[1:])
            found[name][part] = values
    return found


def _of_rows(batch: Batch, number: int, part: slice) -> Batch:
    """Some rows of what has that number of rows: batches also hold what is of samples."""
    return {key: each[part] for key, each in batch.items() if len(each) == number}


def _parts(
    student: Headed, teachers: Mapping[str, Signals], batch: Batch, rows: int
) -> Iterator[tuple[Headed, Mapping[str, Signals], Batch]]:
    """The student's rows, the teachers' with logits, and the batch, of each chunk. Of no rows there is an empty one."""
    student = _widened(student)
    teachers = {
        name: each if each.headed is None else replace(each, headed=_widened(each.headed))
        for name, each in teachers.items()
    }
    for start in range(0, max(len(student.hidden), 1), rows):
        part = slice(start, start + rows)
        with torch.no_grad():
            taught = {name: _part(each, part).computed() for name, each in teachers.items()}
        yield student.rows(part), taught, _of_rows(batch, len(student.hidden), part)


def _widened(head: Headed) -> Headed:
    """With its weight in at least float32: once, and not for each chunk."""
    return replace(head, weight=at_least_float32(head.weight))


def _zeros(head: Headed, weights: Sequence[float]) -> Tensor:
    """The K sums before the first chunk: [K]. They are added to in place, see `map_rows`."""
    return at_least_float32(head.hidden.new_zeros(len(weights)))


def _part(signals: Signals, part: slice) -> Signals:
    """Some of the rows, without what has no rows."""
    return replace(signals, layers={}, attention={}, mask=None).rows(part)


class _SumOverRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        losses: RowLosses,
        student: Headed,
        teachers: Mapping[str, Signals],
        batch: Batch,
        weights: Sequence[float],
        rows: int,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[6:]
        gradients = [
            torch.zeros_like(at_least_float32(each)) if each is not None and wants else None
            for each, wants in zip(tensors, wanted, strict=True)
        ]
        of_hidden, of_weight, of_bias = gradients
        sums = _zeros(student, weights)
        with full_precision(student.hidden):
            for at, (part, taught, of_part) in enumerate(_parts(student, teachers, batch, rows)):
                product = replace(part, softcap=None).logits()
                with torch.enable_grad():
                    values = losses(Signals(student.capped(product.requires_grad_())), taught, of_part).reshape(-1)
                    total = (values * values.new_tensor(weights)).sum()
                (gradient,) = torch.autograd.grad(total, product)
                sums += values.detach()
                del values, total, product, taught
                if of_hidden is not None:
                    of_hidden[at * rows : (at + 1) * rows] = gradient @ part.weight
                if of_weight is not None:
                    of_weight.addmm_(gradient.mT, at_least_float32(part.hidden))
                if of_bias is not None:
                    of_bias += gradient.sum(0)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [None if each is None else each.dtype for each in tensors]
        ctx.mark_non_differentiable(sums)
        return (sums * sums.new_tensor(weights)).sum(), sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *[None] * 6, *(None if each is None else (of_total * each).to(dtype) for each, dtype in pairs)
