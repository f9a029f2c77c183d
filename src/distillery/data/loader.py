"""A dataset of whole batches, and a DataLoader that Lightning can save and restore in mid-epoch."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distillery.core.errors import UserError
from distillery.data.raw_data import UNLABELLED
from distillery.data.sampler import BatchKey, SeededBatchSampler
from distillery.data.tokens import IGNORED

TOGETHER = 2**18  # bytes of the batches that are made together


@dataclass(eq=False, repr=False)
class BatchDataset(Dataset[dict[str, Tensor]]):
    """`dataset[key]` is the batch of a `BatchKey`: its inputs, `target`, `index`, and `labelled` if that is given.

    Args:
        inputs_of: makes the inputs from the positions [B] and the key. A `target` among them replaces `targets`.
        targets: those of all samples.
        labelled: which samples have a label, bool [N]; None: all of them.
        extra: more tensors of all samples, by the names under which a batch has its own.
    """

    inputs_of: Callable[[Tensor, BatchKey], Mapping[str, Tensor]]
    targets: Tensor
    labelled: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, key: BatchKey) -> dict[str, Tensor]:
        if not isinstance(key, BatchKey):
            raise UserError(
                "The seeded sampler of the data was replaced, for instance by trainer.overfit_batches. "
                "To overfit a few samples, set data.train_size to their number instead."
            )
        index = torch.tensor(key.positions)
        batch = {"target": self.targets[index], "index": index} | dict(self.inputs_of(index, key))
        batch |= {name: values[index] for name, values in self.extra.items()}
        if self.labelled is None:
            return batch
        labelled = self.labelled[index]
        if (target := batch["target"]).dim() > 1 and not target.is_floating_point():  # one for each word or pixel
            hidden = ~labelled.view(-1, *[1] * (target.dim() - 1))
            target = target.masked_fill(hidden & (target != IGNORED), UNLABELLED)
        return batch | {"target": target, "labelled": labelled}

    def together(self, keys: Sequence[BatchKey]) -> list[dict[str, Tensor]]:
        """The batches of several keys of an epoch, made as one batch and divided: of small ones most time is overhead.

        Those of texts are made one by one, since each has a length of its own.
        """
        if len(keys) == 1 or keys[0].length:
            return [self[key] for key in keys]
        whole = self[BatchKey(keys[0].epoch, [*chain.from_iterable(key.positions for key in keys)])]
        parts = zip(*(values.split([len(key.positions) for key in keys]) for values in whole.values()), strict=True)
        return [dict(zip(whole, part, strict=True)) for part in parts]


class ResumableLoader(DataLoader[dict[str, Any]]):
    """Counts the batches that the trainer has received, not those that the workers have prefetched.

    Lightning stores `state_dict()` in each checkpoint. A checkpoint that is written during a training step (by an
    exception or a signal handler) counts that batch as served.
    """

    dataset: BatchDataset
    sampler: SeededBatchSampler
    _source: Iterator[Any]
    _peeked: deque[Any]  # read ahead, not served yet

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator starts at the first `next`. Lightning calls `iter` before it sets the sampler's epoch, and
        # the workers would prefetch batches of the wrong one.
        plain = not (self.num_workers or self.pin_memory)  # torch's iterator would take as long as a small batch
        self._source = self._made() if plain else super().__iter__()
        self._peeked = deque()
        while (batch := self._peeked.popleft() if self._peeked else next(self._source, None)) is not None:
            self.sampler.served += 1
            yield batch

    def _made(self) -> Iterator[dict[str, Tensor]]:
        """The batches, as many together as `TOGETHER` allows."""
        keys, number = iter(self.sampler), 1
        while some := list(islice(keys, number)):
            batches = self.dataset.together(some)
            number = max(1, TOGETHER // sum(values.nbytes for values in batches[0].values()))
            yield from batches

    def peek(self, count: int) -> list[Any]:
        """The next `count` batches of the current iteration, or as many as are left; they are still to be served."""
        self._peeked.extend(islice(self._source, max(0, count - len(self._peeked))))
        return list(islice(self._peeked, count))

    def state_dict(self) -> dict[str, int]:
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.sampler.load_state_dict(state)
