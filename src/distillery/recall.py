"""A teacher's signals for each training sample, computed once and looked up from then on."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from distillery.data.vision import VisionData
from distillery.errors import UserError
from distillery.evaluation import Evaluation
from distillery.signals import Signals, is_parameter

CHUNK = 500  # images of one forward


@dataclass
class Held:
    """What is known of one teacher on one set of data: signals of the training images, scores of the other splits."""

    key: tuple[str, str] = ("", "")
    signals: dict[str, Tensor] = field(default_factory=dict)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)


_held = Held()  # of the last teacher and data: the runs of a study share them


class Recall:
    """`recall(index)`: what a teacher gives for those training samples, [B].

    The first call computes the signals of all training images and keeps them in memory, for the later runs of this
    process with the same teacher and images too: these compute only what none before them has asked for. Each
    image is seen as it is and always among the same others, so that a value does not depend on who asks first.

    Args:
        compute: batch → the signals that the losses read.
        fingerprint: of the teacher: its weights, and how it is given its input.
        data: serves the training images, without augmentation.

    Raises:
        UserError: training images are augmented (then a sample has no one value), or, at the first call, the
            signals would take more than half of this machine's memory.
    """

    def __init__(self, compute: Callable[[Mapping[str, Tensor]], Signals], fingerprint: str, data: VisionData) -> None:
        if data.augment:
            raise UserError(
                "A cached teacher sees each image once, and data.augment makes another one of it in each epoch. "
                "Set data.augment=null, or the teacher's cache=false."
            )
        self._compute = compute
        self._fingerprint = fingerprint
        self._data = data
        self._signals: Signals | None = None

    def __call__(self, index: Tensor) -> Signals:
        if self._signals is None:
            self._signals = self._all(index.device)
        row = self._row[index.cpu()]
        return _like(self._signals, {name: t[row].to(index.device) for name, t in _flat(self._signals).items()})

    def held(self) -> Held:
        """What this process knows of the teacher on the data."""
        global _held
        key = (self._fingerprint, self._data.fingerprint)
        if _held.key != key:
            _held = Held(key)
        return _held

    def _all(self, device: torch.device) -> Signals:
        """The signals of the whole training split, a row for each of its indices."""
        split = self._data.splits["train"]
        self._row = torch.full((len(split.targets),), -1)
        self._row[split.indices] = torch.arange(len(split.indices))
        held = self.held().signals
        chunks = self._chunks(split.indices, device)
        first = next(chunks)
        if missing := _flat(first).keys() - held.keys():
            self._refuse_too_much(first, len(split.indices))
            rows = [{name: _flat(chunk)[name].cpu() for name in missing} for chunk in (first, *chunks)]
            held |= {name: torch.cat([row[name] for row in rows]) for name in missing}
        return _like(first, {name: held[name] for name in _flat(first)})

    def _chunks(self, indices: Tensor, device: torch.device) -> Iterator[Signals]:
        images = self._data.splits["train"].images
        for part in indices.split(CHUNK):
            yield self._compute({"image": images.batch(part, None, 0, 0).to(device), "index": part.to(device)})

    def _refuse_too_much(self, first: Signals, samples: int) -> None:
        size = sum(tensor.nbytes / len(tensor) for tensor in _flat(first).values()) * samples
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if size > memory / 2:
            raise UserError(
                f"The teacher's signals for {samples:,} images would take {size / 2**30:.0f} GiB, and this machine "
                f"has {memory / 2**30:.0f}. Set the teacher's cache=false, or choose fewer or smaller layers."
            )


def scored(recall: Recall | None, name: str, evaluate: Callable[[], Evaluation]) -> Evaluation:
    """The result of `evaluate`; of a teacher that is cached it is called once for each `name`."""
    if recall is None:
        return evaluate()
    known = recall.held().evaluations
    if name not in known:
        known[name] = evaluate()
    return known[name]


def _flat(signals: Signals) -> dict[str, Tensor]:
    """Every tensor that has a row for each sample, by a name of its own."""
    layers = {f"layers.{tap}": tensor for tap, tensor in signals.layers.items() if not is_parameter(tap)}
    attention = {
        f"attention.{tap}.{part}": getattr(operands, part)
        for tap, operands in signals.attention.items()
        for part in ("query", "key", "value")
    }
    return {"logits": signals.logits} | layers | attention


def _like(signals: Signals, flat: Mapping[str, Tensor]) -> Signals:
    """`signals` with those tensors in place of its own."""
    return replace(
        signals,
        logits=flat["logits"],
        layers={tap: flat.get(f"layers.{tap}", tensor) for tap, tensor in signals.layers.items()},
        attention={
            tap: replace(
                operands,
                query=flat[f"attention.{tap}.query"],
                key=flat[f"attention.{tap}.key"],
                value=flat[f"attention.{tap}.value"],
            )
            for tap, operands in signals.attention.items()
        },
    )
