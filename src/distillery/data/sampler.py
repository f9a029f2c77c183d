"""The order of the samples: seeded global batches, divided among the ranks, resumable in mid-epoch."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Sampler

from distillery.core.errors import UserError
from distillery.core.random import hash_key, permutation

BATCHES = 1  # hashed into the seed, so that the order of the batches is independent of that of the samples
REPEATED = 2  # and this, with the number of a round, for the order of the repeated samples
CLASS = 3  # and this, with the number of a class, for the samples that are drawn of it


class BatchKey(NamedTuple):
    """All that a dataset needs to make one batch: the epoch and the samples' positions in the raw data.

    `length` is the length of the longest text in the global batch, to which every rank pads; 0 for images.
    """

    epoch: int
    positions: list[int]
    length: int = 0


@dataclass(eq=False, repr=False)
class SeededBatchSampler(Sampler[BatchKey]):
    """Yields one `BatchKey` per batch; the order is a pure function of (seed, epoch).

    `batch_size` counts the samples of all ranks together. The global batches do not depend on `world`: rank r takes
    every `world`-th sample of each, starting at the r-th, so all ranks have the same number of batches.

    In training (`shuffle`), a last batch with fewer than two samples per rank is left out, because batch statistics
    and relations between samples need two; `drop_last` leaves out any incomplete batch. Evaluation leaves nothing
    out: a last batch too small to give each rank a sample is merged into the one before it.

    With `lengths` (the number of tokens of each sample, by position), samples of similar length share a batch, which
    reduces padding: in training, `bucket` batches at a time are sorted by length, then all batches are shuffled; in
    evaluation the whole split is sorted. `bucket=0` switches the sorting off.

    With `classes` (that of each sample, by position; negative: it has none), training serves all classes equally often;
    their numbers of samples differ by at most one. An epoch has as many labelled samples as there are. Of a frequent
    class it has a part, another one in each epoch; samples of a rare class are repeated. Within a class, the times that
    samples are served differ by at most one. Samples without a class are served as without this setting.

    With `repeated` (positions), each batch begins with `repeats` of these samples, in place of as many of `indices`. An
    epoch serves each of `indices` once, and the repeated samples as often as that takes, never twice in a batch. With
    `batches`, the repeated samples are alone, in so many batches.

    Raises:
        UserError: there are too few samples, or the batch is too small, for the number of ranks.
    """

    indices: Tensor
    batch_size: int
    seed: int = 0
    shuffle: bool = False
    rank: int = 0
    world: int = 1
    drop_last: bool = False
    lengths: Tensor | None = None
    bucket: int = 0
    repeated: Tensor | None = None
    repeats: int = 0
    batches: int | None = None
    classes: Tensor | None = None

    def __post_init__(self) -> None:
        self.size = self.batch_size - self.repeats  # what each batch takes of `indices`
        self.bounds = self._bounds()
        self.epoch = self.served = self._resume_at = 0

    def _bounds(self) -> list[tuple[int, int]]:
        """Start and end of each global batch."""
        total, least = len(self.indices), 2 * self.world if self.shuffle else self.world
        size = self.batch_size if self.batches is None else self.repeats
        if total and size < least:
            raise UserError(
                f"A batch of {size} samples is too small for {self.world} process(es): "
                "data.batch_size and data.eval_batch_size count the samples of all processes; "
                f"at least {least} are needed."
            )
        if self.batches is not None:
            return []
        bounds = [(start, min(start + self.size, total)) for start in range(0, total, self.size)]
        size = bounds[-1][1] - bounds[-1][0] + self.repeats if bounds else self.batch_size
        if size < (self.batch_size if self.drop_last else least):
            bounds.pop()
            if not bounds:
                raise UserError(
                    f"The split has {size} sample(s), too few for one batch of {self.world} process(es) "
                    f"and {self.batch_size} samples. Use a smaller batch or more samples."
                )
            if not self.shuffle and not self.drop_last:
                bounds[-1] = (bounds[-1][0], total)
        return bounds

    def set_epoch(self, epoch: int) -> None:
        """Select the order of an epoch. A restored position is valid only in the epoch in which it was saved."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.served = self._resume_at = 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "served": self.served, "batches": len(self), "batch_size": self.batch_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where `state` was saved: the next iteration serves the rest of that epoch.

        Raises:
            UserError: the epoch is unfinished, and its batches had another size or number.
        """
        unfinished = 0 < state["served"] < state["batches"]
        if unfinished and (state["batch_size"], state["batches"]) != (self.batch_size, len(self)):
            raise UserError(
                f"The checkpoint stopped after {state['served']} of {state['batches']} batches of "
                f"{state['batch_size']} samples, but this run has {len(self)} of {self.batch_size}. "
                "Resume with the data.batch_size and the training set of the run that saved it."
            )
        self.epoch = state["epoch"]
        self.served = self._resume_at = state["served"] if unfinished else 0

    def __len__(self) -> int:
        return len(self.bounds) if self.batches is None else self.batches

    def __iter__(self) -> Iterator[BatchKey]:
        start, self._resume_at = self._resume_at, 0
        self.served = start
        epoch = self.epoch
        for positions in self._batches(epoch)[start:]:
            length = 0 if self.lengths is None else int(self.lengths[positions].max())
            yield BatchKey(epoch, positions[self.rank :: self.world].tolist(), length)

    def _batches(self, epoch: int) -> list[Tensor]:
        """The positions of each global batch."""
        if self.repeated is None:
            return self._of_indices(epoch)
        chunks = self._of_repeated(self.repeated, epoch)
        if self.batches is not None:
            return list(islice(chunks, self.batches))
        return [torch.cat(both) for both in zip(chunks, self._of_indices(epoch), strict=False)]

    def _of_repeated(self, positions: Tensor, epoch: int) -> Iterator[Tensor]:
        """What each global batch has of the repeated samples, without end: round by round, in another order each."""
        whole = len(positions) - len(positions) % self.repeats  # what is left over differs from round to round
        for number in count():
            yield from self._drawn(positions, hash_key(self.seed, REPEATED, number), epoch)[:whole].split(self.repeats)

    def _of_indices(self, epoch: int) -> list[Tensor]:
        """What each global batch has of `indices`."""
        total = len(self.indices)
        ordered = self._drawn(self.indices, self.seed, epoch) if self.shuffle else self.indices
        if self.lengths is None or not self.bucket:
            return [ordered[first:end] for first, end in self.bounds]
        if not self.shuffle:
            ordered = self._by_length(ordered)
            return [ordered[first:end] for first, end in self.bounds]
        whole = total - total % self.size
        chunks = map(self._by_length, ordered[:whole].split(self.bucket * self.size))
        # The incomplete last batch, which may be left out, has samples of any length, not always the longest ones.
        ordered = torch.cat([*chunks, ordered[whole:]])
        batches = [ordered[first:end] for first, end in self.bounds]
        order = permutation(hash_key(self.seed, BATCHES), epoch, whole // self.size)
        return [*(batches[i] for i in order.tolist()), *batches[len(order) :]]

    def _drawn(self, positions: Tensor, seed: int, epoch: int) -> Tensor:
        """The positions in the order of an epoch; with `classes` as many, of all classes equally many."""
        chosen = positions if self.classes is None else self._balanced(positions, self.classes[positions], seed, epoch)
        return chosen[permutation(seed, epoch, len(chosen))]

    def _balanced(self, positions: Tensor, classes: Tensor, seed: int, epoch: int) -> Tensor:
        """As many positions [N] as there are: those whose class is negative, and of each other class equally many."""
        present = classes[classes >= 0].unique()
        share, rest = divmod(int((classes >= 0).sum()), max(1, len(present)))
        one_more = set(present[permutation(hash_key(seed, CLASS), epoch, len(present))[:rest]].tolist())
        chosen = [positions[classes < 0]]
        for label in present.tolist():
            own = positions[classes == label]
            rounds, left = divmod(share + (label in one_more), len(own))
            some = own[permutation(hash_key(seed, CLASS, label), epoch, len(own))[:left]]
            chosen += [own.repeat(rounds), some]
        return torch.cat(chosen)

    def _by_length(self, positions: Tensor) -> Tensor:
        assert self.lengths is not None
        return positions[self.lengths[positions].argsort(stable=True)]
