"""A teacher's signals for each training sample, computed once and then looked up."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from distillery.core.errors import UserError
from distillery.core.process import world_size
from distillery.data.module import Data, Stage
from distillery.losses.levels import Available
from distillery.losses.signals import Attention, Signals
from distillery.tasks.evaluate import Evaluation
from distillery.tasks.task import Task
from distillery.teachers.frozen import SignalSource
from distillery.teachers.stored_signals import Stored, by_sample, stored, with_values


@dataclass
class Held:
    """What is stored of one teacher on one data set: signals of the training samples, scores on the other splits."""

    signals: dict[str, Stored] = field(default_factory=dict)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)


@lru_cache(maxsize=1)  # that of the last teacher and data: the runs of a study share it
def _held(teacher: str, data: str, batch_size: int) -> Held:
    return Held()


class TeacherCache(SignalSource):
    """The signals of a teacher for the training samples, computed once.

    The first call computes the signals of all training samples and keeps them in memory. Later runs of this process
    with the same teacher and samples share them, and compute only signals that no run before has asked for. Samples
    are computed always in the same batches, so that a value does not depend on which run asked first, and in all of
    their views (`data.views`).
    Of texts, the tokens that count are kept; padded positions are 0.

    Args:
        compute: batch → the signals that the losses read.
        fingerprint: identifies the teacher's weights and how its inputs are made.
        data: serves the training samples.

    Raises:
        UserError: training samples differ from epoch to epoch, so that no single value is theirs; or, at the first
            call, the signals would take more than half of this machine's memory, or the attention of a text is
            restricted to some of its tokens.
    """

    def __init__(self, compute: Callable[[Mapping[str, Tensor]], Signals], fingerprint: str, data: Data) -> None:
        refuse_varying(data)
        self._compute = compute
        self._fingerprint = fingerprint
        self._data = data
        self._first: Signals | None = None  # an example of the signals

    available = Available()

    def signals(self, batch: Mapping[str, Tensor]) -> Signals:
        """See `SignalSource`."""
        index, mask = batch["index"], batch.get("attention_mask")
        if self._first is None:
            self._first = self._all(index.device)
        row = self._row[batch["view"].cpu() if "view" in batch else 0, index.cpu()]
        found = {name: values.rows(row, mask).to(index.device) for name, values in self._values.items()}
        return with_values(self._first, found, mask)

    def evaluated(self, data: Data, stage: Stage, task: Task, judge: Callable[[], Evaluation]) -> Evaluation:
        """See `SignalSource`. Each is judged once."""
        key = f"{stage} {type(task).__name__} {vars(task) | {'weight': None}}"  # the weight changes no score
        known = self.held().evaluations
        if key not in known:
            known[key] = judge()
        return known[key]

    @property
    def _batch_size(self) -> int:
        """Samples of one forward: this rank's share of `eval_batch_size`. Known only when all ranks have started."""
        return max(1, self._data.eval_batch_size // world_size())

    def held(self) -> Held:
        """What this process has stored of the teacher on the data."""
        # The last bits of a value depend on how many samples are computed together.
        return _held(self._fingerprint, self._data.fingerprint, self._batch_size)

    def _all(self, device: torch.device) -> Signals:
        """Compute what is not yet stored for the training split; returns the signals of the first batch."""
        plain, dataset = self._data.plain(self._batch_size)
        views = self._data.distinct_views or 1
        keys = [key._replace(epoch=view) for view in range(views) for key in plain]
        positions = torch.tensor([position for key in plain for position in key.positions])
        self._row = torch.full((views, len(dataset)), -1)
        self._row[:, positions] = torch.arange(views * len(positions)).view(views, -1)
        first = self._seen(dataset[keys[0]], device)
        held = self.held().signals
        missing = by_sample(first).keys() - held.keys()
        parts: dict[str, list[Stored]] = {name: [] for name in missing}
        hidden = not Console().is_terminal  # which would leave an empty line
        for key in track(keys, "The teacher's signals", transient=True, disable=hidden) if missing else ():
            batch = dataset[key]
            flat = by_sample(first if key is keys[0] else self._seen(batch, device))
            for name, chunks in parts.items():
                chunks.append(stored(name, flat[name], batch.get("attention_mask")))
            if key is keys[0]:
                self._refuse_too_much([chunks[0] for chunks in parts.values()], views * len(positions))
        held |= {name: Stored.joined(chunks) for name, chunks in parts.items()}
        self._values = {name: held[name] for name in by_sample(first)}
        return first

    def _seen(self, batch: Mapping[str, Tensor], device: torch.device) -> Signals:
        signals = self._compute({key: value.to(device) for key, value in batch.items()})
        if signals.mask is not None:
            for tap, attention in signals.attention.items():
                _refuse_one_way(tap, attention, signals.mask.bool())
        return signals

    def _refuse_too_much(self, first: list[Stored], samples: int) -> None:
        """Raise UserError if the signals of `samples` samples, of the size of the `first` ones, exceed the memory."""
        lengths = self._data.order("train").get("lengths")
        tokens = 0 if lengths is None else int(lengths[self._row[0] >= 0].sum())
        rows = [(part.values, samples if part.lengths is None else tokens) for part in first]
        size = sum(values.nbytes / len(values) * number for values, number in rows)
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if size > memory / 2:
            raise UserError(
                f"The teacher's signals for {samples:,} samples would take {size / 2**30:.0f} GiB, and this machine "
                f"has {memory / 2**30:.0f}. Set the teacher's cache=false, or choose fewer or smaller layers."
            )


def refuse_varying(data: Data, teacher: str = "the teacher", views: int | None = None) -> None:
    """Raise UserError, which names the `teacher`, if training samples differ from epoch to epoch without end.

    Args:
        views: how many versions of each the cache has; None: it is not written yet.
    """
    if data.distinct_views is None:
        number = "8 (or another number of versions of each image)" if views is None else str(views)
        few = f"data.views={number}, " if data.kind == "images" else ""
        raise UserError(
            f"A cache keeps the signals of {teacher} for each sample, but data.{data.varies} makes another version of "
            f"it in each epoch. Set {few}data.{data.varies}=null, or the teacher's cache=false."
        )


def _refuse_one_way(tap: str, attention: Attention, counts: Tensor) -> None:
    """Raise UserError unless each token may attend to every token that counts, [B, L], and to no other."""
    among, given = counts[:, None, None], attention.mask
    allowed = torch.ones_like(among) if given is None else given if given.dtype == torch.bool else given == 0
    rows = counts[:, None, :, None]  # what a padded token attends to does not matter
    if ((allowed != among) & rows).any():
        raise UserError(
            f"The attention of {tap!r} is not that of an encoder: not every token attends to every other one, and the "
            "cache does not keep which. Set the teacher's cache=false."
        )
