"""A teacher's signals for each training sample, computed once and then looked up."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from distillery.core.errors import UserError
from distillery.core.process import world_size
from distillery.data.module import Data
from distillery.losses.levels import Available
from distillery.losses.signals import Attention, Signals, is_parameter
from distillery.tasks.evaluate import Evaluation
from distillery.teachers.frozen import SignalSource
from distillery.teachers.stored_signals import Stored, stored


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
    are computed unaugmented and always in the same batches, so that a value does not depend on which run asked first.
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
        row = self._row[index.cpu()]
        found = {name: values.rows(row, mask).to(index.device) for name, values in self._values.items()}
        return _like(self._first, found, mask)

    def evaluated(self, key: str, judge: Callable[[], Evaluation]) -> Evaluation:
        """See `SignalSource`. Each is judged once."""
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
        keys, dataset = self._data.plain(self._batch_size)
        positions = torch.tensor([position for key in keys for position in key.positions])
        self._row = torch.full((len(dataset),), -1)
        self._row[positions] = torch.arange(len(positions))
        first = self._seen(dataset[keys[0]], device)
        held = self.held().signals
        missing = _flat(first).keys() - held.keys()
        parts: dict[str, list[Stored]] = {name: [] for name in missing}
        hidden = not Console().is_terminal  # which would leave an empty line
        for key in track(keys, "The teacher's signals", transient=True, disable=hidden) if missing else ():
            batch = dataset[key]
            flat = _flat(first if key is keys[0] else self._seen(batch, device))
            for name, chunks in parts.items():
                chunks.append(stored(name, flat[name], batch.get("attention_mask")))
            if key is keys[0]:
                self._refuse_too_much([chunks[0] for chunks in parts.values()], len(positions))
        held |= {name: Stored.joined(chunks) for name, chunks in parts.items()}
        self._values = {name: held[name] for name in _flat(first)}
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
        tokens = 0 if lengths is None else int(lengths[self._row >= 0].sum())
        rows = [(part.values, samples if part.lengths is None else tokens) for part in first]
        size = sum(values.nbytes / len(values) * number for values, number in rows)
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if size > memory / 2:
            raise UserError(
                f"The teacher's signals for {samples:,} samples would take {size / 2**30:.0f} GiB, and this machine "
                f"has {memory / 2**30:.0f}. Set the teacher's cache=false, or choose fewer or smaller layers."
            )


def refuse_varying(data: Data, teacher: str = "the teacher") -> None:
    """Raise UserError, which names the `teacher`, if training samples differ from epoch to epoch."""
    if data.varies:
        raise UserError(
            f"A cache keeps one set of signals of {teacher} per sample, but data.{data.varies} changes the samples in "
            f"each epoch. Set data.{data.varies}=null, or the teacher's cache=false."
        )


def _flat(signals: Signals) -> dict[str, Tensor]:
    """Every tensor with a row for each sample, by a unique name."""
    layers = {f"layers.{tap}": tensor for tap, tensor in signals.layers.items() if not is_parameter(tap)}
    attention = {
        f"attention.{tap}.{part}": getattr(operands, part)
        for tap, operands in signals.attention.items()
        for part in ("query", "key", "value")
    }
    logits = {"logits": signals.logits} if signals.headed is None else {"hidden": signals.headed.hidden}
    return logits | layers | attention


def _like(signals: Signals, flat: Mapping[str, Tensor], mask: Tensor | None) -> Signals:
    """`signals` with its tensors replaced by those in `flat`, for a batch with that mask."""
    hidden = flat.get("hidden")
    return Signals(
        logits=flat["logits"] if hidden is None else hidden.new_empty(len(hidden), 0),
        layers={tap: flat.get(f"layers.{tap}", tensor) for tap, tensor in signals.layers.items()},
        attention={
            tap: replace(
                operands,
                query=flat[f"attention.{tap}.query"],
                key=flat[f"attention.{tap}.key"],
                value=flat[f"attention.{tap}.value"],
                mask=operands.mask if mask is None else mask.bool()[:, None, None],
            )
            for tap, operands in signals.attention.items()
        },
        mask=mask,
        headed=None if hidden is None or signals.headed is None else replace(signals.headed, hidden=hidden),
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
