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

from distillery.core.errors import UserError
from distillery.core.numerics import at_least_float32, full_precision
from distillery.losses.levels import Headed
from distillery.losses.signals import Signals
from distillery.losses.steps import Steps
from distillery.losses.term import Term

Batch = Mapping[str, Tensor]
# (student's logits [n,V], teacher's logits [n,V'] or None, batch of the n rows) → the weighted loss of each row, [n]
RowLoss = Callable[[Tensor, Tensor | None, Batch], Tensor]
ROWS = 64


def sum_over_rows(
    loss: RowLoss, student: Headed, teacher: Headed | Tensor | None, batch: Batch, rows: int = ROWS
) -> Tensor:
    """`loss(student.logits(), teacher.logits(), batch).sum()`, of at most `rows` rows at a time.

    The value and the gradients by the student's hidden rows, weight and bias are those of this expression: to 1e-12 in
    float64, and to 1e-5 in float32, where sums are in another order. The gradient of a weight that has other uses is
    added to theirs, as always. Gradients cannot be differentiated again.

    Args:
        loss: is called with the rows of a chunk. It must treat each row alone and have no trained tensors of its own;
            `weighted_sum` makes one of loss terms.
        teacher: its rows with its head, its logits [N,V'], or None for a loss that reads it from the batch (stored
            top-k). It gets no gradient.
        batch: tensors with N rows.
        rows: of a chunk. The default suits a CPU.
    """
    tensors = student.hidden, student.weight, student.bias
    if not torch.is_grad_enabled() or not any(each is not None and each.requires_grad for each in tensors):
        parts = _parts(student, teacher, batch, rows)
        return torch.stack([loss(part.logits(), logits, of_part).sum() for part, logits, of_part in parts]).sum()
    return _SumOverRows.apply(loss, student, teacher, batch, rows, *tensors)


def weighted_sum(terms: Sequence[Term]) -> RowLoss:
    """The sum of weight · loss of some terms as a `RowLoss`. Make it anew for each batch.

    A term that counts batches (`Steps`, as topk_kd with missing=sample) counts the chunks of a batch as one.

    Raises:
        UserError: a term is no sum over the rows of logits, or has trained modules.
    """
    for term in terms:
        if not term.contract.per_sample:
            raise UserError(
                f"{term.name} compares the rows of a batch with each other. It is no sum over rows, so it needs all "
                "logits at once and cannot be computed in chunks."
            )
        if term.contract.needs != "logits" or any(True for _ in term.parameters()):
            raise UserError(
                f"{term.name} is no function of logits alone and cannot be computed in chunks of their rows."
            )
    steps = [(module, module.done) for term in terms for module in term.modules() if isinstance(module, Steps)]

    def loss(student: Tensor, teacher: Tensor | None, batch: Batch) -> Tensor:
        for counter, done in steps:
            counter.done = done
        of_teacher = Signals(student.new_empty(len(student), 0) if teacher is None else teacher)
        return torch.stack([term.weight * term(Signals(student), of_teacher, batch) for term in terms]).sum(0)

    return loss


def _parts(
    student: Headed, teacher: Headed | Tensor | None, batch: Batch, rows: int
) -> Iterator[tuple[Headed, Tensor | None, Batch]]:
    """The student's rows, the teacher's logits and the batch, of each chunk. Of no rows there is one empty chunk."""
    student = replace(student, weight=at_least_float32(student.weight))  # once, not for each chunk
    if isinstance(teacher, Headed):
        teacher = replace(teacher, weight=at_least_float32(teacher.weight))
    for start in range(0, max(len(student.hidden), 1), rows):
        part = slice(start, start + rows)
        with torch.no_grad():
            if isinstance(teacher, Headed):
                logits: Tensor | None = replace(teacher, hidden=teacher.hidden[part]).logits()
            else:
                logits = None if teacher is None else teacher[part].detach()
        yield replace(student, hidden=student.hidden[part]), logits, {key: each[part] for key, each in batch.items()}


class _SumOverRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        loss: RowLoss,
        student: Headed,
        teacher: Headed | Tensor | None,
        batch: Batch,
        rows: int,
        *tensors: Tensor | None,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[5:]
        gradients = [
            torch.zeros_like(at_least_float32(each)) if each is not None and wants else None
            for each, wants in zip(tensors, wanted, strict=True)
        ]
        of_hidden, of_weight, of_bias = gradients
        sums = []
        with full_precision(student.hidden):
            for at, (part, teacher_logits, of_part) in enumerate(_parts(student, teacher, batch, rows)):
                product = replace(part, softcap=None).logits()
                with torch.enable_grad():
                    value = loss(student.capped(product.requires_grad_()), teacher_logits, of_part).sum()
                (gradient,) = torch.autograd.grad(value, product)
                sums.append(value.detach())
                del value, product, teacher_logits
                if of_hidden is not None:
                    of_hidden[at * rows : (at + 1) * rows] = gradient @ part.weight
                if of_weight is not None:
                    of_weight.addmm_(gradient.mT, at_least_float32(part.hidden))
                if of_bias is not None:
                    of_bias += gradient.sum(0)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [None if each is None else each.dtype for each in tensors]
        return torch.stack(sums).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *of_sum: Tensor) -> tuple[Tensor | None, ...]:
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *[None] * 5, *(None if each is None else (of_sum[0] * each).to(dtype) for each, dtype in pairs)
