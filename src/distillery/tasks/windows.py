"""Documents in overlapping windows, so that each token is predicted from more context than disjoint pieces give it."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.data.tokens import IGNORED


def strided(
    batches: Iterable[Mapping[str, Tensor]], length: int, stride: int, rows: int
) -> Iterator[dict[str, Tensor]]:
    """Batches of windows: one begins at each `stride`-th token of a document, up to the one that reaches its end.

    A window's first `length - stride` tokens were in the window before: they are its context and bear no loss again.
    So each token that bears loss does so exactly once, in the first window that has it. With a stride of `length - 1`
    the windows are the pieces that the data serve: the one token that two of them share has no context in the second.

    Args:
        batches: of whole documents, one in each row, as `causal_batch` gives them.
        length: tokens of a window.
        rows: windows of a batch.

    Raises:
        UserError: a stride that leaves some token without context, or takes no step; or is no whole number.
    """
    if not (isinstance(stride, int) and 1 <= stride < length):
        raise UserError(
            f"stride={stride}: it must be from 1 to {length - 1}, so that windows of {length} tokens overlap. "
            f"stride={length // 2} gives every token half a window of context or more, for twice the time."
        )
    for batch in batches:
        lengths = batch["attention_mask"].sum(1)
        counts = -(-(lengths - length).clamp_min(0) // stride) + 1
        row = torch.arange(len(lengths)).repeat_interleave(counts)
        begins = (torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]) * stride
        for some, start in zip(row.split(rows), begins.split(rows), strict=True):
            yield _windows(batch, some, start, length, length - stride)


def _windows(batch: Mapping[str, Tensor], row: Tensor, start: Tensor, length: int, context: int) -> dict[str, Tensor]:
    """The windows that begin at token `start` [W] of the documents `row` [W]."""
    own = torch.arange(min(length, batch["input_ids"].shape[1]))
    places = start[:, None] + own
    there = places < batch["attention_mask"].sum(1)[row][:, None]
    places = places.where(there, 0)
    found = {key: batch[key][row[:, None], places] for key in ("input_ids", "target", "bytes")}
    before = (own == 0) | ((own < context) & (start > 0)[:, None])
    return {
        "input_ids": found["input_ids"],
        "attention_mask": there.long(),
        "position_ids": own.where(there, 0),
        "target": found["target"].masked_fill(before | ~there, IGNORED),
        "bytes": found["bytes"].masked_fill(~there, 0),
        "index": batch["index"][row],
    }
