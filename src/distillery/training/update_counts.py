"""The denominators of the losses: how many rows and samples one update of the student is computed from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from distillery.core.process import world_size
from distillery.tasks.task import Batch, Task, row_labels


@dataclass(frozen=True)
class UpdateCounts:
    """Rows and samples of one update, over all ranks and all batches whose gradients are accumulated.

    A mean is this batch's sum × ranks × batches ÷ the count. Averaged over ranks (as DDP does) and over the
    accumulated batches (as Lightning does), it is the mean of one big batch, however its rows are distributed.

    Attributes:
        rows: rows of logits that count (`Task.rows`): samples, or tokens.
        samples: samples, whether or not any of their rows count.
        labelled_rows, labelled_samples: those that have a label.
        batches: how many batches are accumulated.
        ranks: how many processes train together.
    """

    rows: Tensor | int
    samples: Tensor | int
    labelled_rows: Tensor | int
    labelled_samples: Tensor | int
    batches: int
    ranks: int

    @classmethod
    def of(cls, task: Task, batches: Sequence[Batch]) -> Self:
        """Counts those of the batches of this rank's share and adds those of the other ranks.

        Every rank must call this, with equally many batches.
        """
        rows = (row_labels(task, batch) for batch in batches)
        return cls._over_ranks([_counts(*both) for both in zip(rows, batches, strict=True)], batches[0])

    @classmethod
    def of_batch(cls, of_rows: Batch, batch: Batch) -> Self:
        """`of` a single batch whose rows are known (`Task.rows`): nothing is accumulated."""
        return cls._over_ranks([_counts(of_rows, batch)], batch)

    @classmethod
    def _over_ranks(cls, counts: Sequence[Sequence[int]], batch: Batch) -> Self:
        ranks, sums = world_size(), [sum(each) for each in zip(*counts, strict=True)]
        if ranks == 1:
            found: Iterable[Tensor | int] = (max(1, one) for one in sums)  # where nothing counts, the mean is 0
        else:
            of_ranks = torch.tensor(sums, device=batch["target"].device)
            dist.all_reduce(of_ranks)
            found = of_ranks.clamp_min(1)
        rows, samples, labelled_rows, labelled_samples = found
        return cls(rows, samples, labelled_rows, labelled_samples, len(counts), ranks)

    def mean(self, values: Tensor, of_rows: bool, labelled: bool) -> Tensor:
        """Values of rows or samples of this batch, [N] → their contribution to the mean over those of the update.

        Args:
            of_rows: they are of rows, not of samples.
            labelled: of the labelled ones alone.
        """
        count = {
            (True, True): self.labelled_rows,
            (True, False): self.rows,
            (False, True): self.labelled_samples,
            (False, False): self.samples,
        }[of_rows, labelled]
        total, share = values.sum(), self.ranks * self.batches
        return (total if share == 1 else total * share) / count


def _counts(of_rows: Batch, batch: Batch) -> list[int]:
    """Rows, samples, labelled rows and labelled samples of one batch."""
    numbers = [len(of_rows["target"]), _samples(batch)]
    return numbers + ([int(each["labelled"].sum()) for each in (of_rows, batch)] if "labelled" in batch else numbers)


def _samples(batch: Batch) -> int:
    return len(next(iter(batch.values())))
