"""The denominators of the losses: how many rows and samples one update of the student is computed from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from distillery.core.process import world_size
from distillery.losses.signals import Signals
from distillery.tasks.task import Batch, Task


@dataclass(frozen=True)
class UpdateCounts:
    """Rows and samples of one update, over all ranks and all batches whose gradients are accumulated.

    A mean is this batch's sum × ranks × batches ÷ the count. Averaged over ranks (as DDP does) and over the
    accumulated batches (as Lightning does), it is the mean of one big batch, however its rows are distributed.

    Attributes:
        rows: rows of logits that count (`Task.rows`): samples, or the tokens that have a label.
        samples: samples, whether or not any of their rows count.
        batches: how many batches are accumulated.
        ranks: how many processes train together.
    """

    rows: Tensor | int
    samples: Tensor | int
    batches: int
    ranks: int

    @classmethod
    def of(cls, task: Task, batches: Sequence[Batch]) -> Self:
        """Counts those of the batches of this rank's share and adds those of the other ranks.

        Every rank must call this, with equally many batches.
        """
        rows, samples = sum(_rows(task, batch) for batch in batches), sum(map(_samples, batches))
        return cls._over_ranks(rows, samples, len(batches), batches[0]["target"].device)

    @classmethod
    def of_batch(cls, batch: Batch, rows: int) -> Self:
        """`of` a single batch whose rows have been counted: nothing is accumulated."""
        return cls._over_ranks(rows, _samples(batch), 1, batch["target"].device)

    @classmethod
    def _over_ranks(cls, rows: int, samples: int, batches: int, device: torch.device) -> Self:
        ranks = world_size()
        if ranks == 1:
            return cls(max(1, rows), samples, batches, ranks)  # without a row that counts, the mean is 0
        counts = torch.tensor([rows, samples], device=device)
        dist.all_reduce(counts)
        all_rows, all_samples = counts.clamp_min(1)
        return cls(all_rows, all_samples, batches, ranks)

    def mean_of_rows(self, values: Tensor) -> Tensor:
        """Values of this batch's rows, [N] → their contribution to the mean."""
        return values.sum() * (self.ranks * self.batches) / self.rows

    def mean_of_samples(self, values: Tensor) -> Tensor:
        """Values of this batch's samples, [B] → their contribution to the mean."""
        return values.sum() * (self.ranks * self.batches) / self.samples


def _samples(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _rows(task: Task, batch: Batch) -> int:
    no_logits = Signals(torch.empty(_samples(batch), 0))
    return len(task.rows(no_logits, batch)[1]["target"])
