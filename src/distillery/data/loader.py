"""A DataLoader that Lightning can save and restore in mid-epoch."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from distillery.data.sampler import SeededBatchSampler


class ResumableLoader(DataLoader[dict[str, Any]]):
    """Counts the batches handed to the trainer, not those which its workers have prefetched.

    Lightning stores `state_dict()` in each checkpoint. One written while a batch is being trained (from an
    exception or a signal handler) counts that batch as served.
    """

    sampler: SeededBatchSampler

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator starts at the first `next`: Lightning calls `iter` before it sets the sampler's epoch,
        # and workers would prefetch the wrong one.
        for batch in super().__iter__():
            self.sampler.served += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.sampler.load_state_dict(state)
