"""A teacher whose signals for the training samples lie on disk: it needs no network to train with."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.data.module import Data, Stage
from distillery.losses.levels import Available, SparseLogits, soft_capped
from distillery.losses.signals import Signals
from distillery.models.adapters import Adapter
from distillery.models.taps.head import Head
from distillery.tasks.evaluate import Evaluation
from distillery.tasks.task import Task
from distillery.teachers.disk_cache import DiskCache
from distillery.teachers.frozen import SignalSource, Teacher
from distillery.teachers.stored_evaluations import stored_evaluation
from distillery.teachers.stored_signals import by_sample, with_values
from distillery.teachers.without_network import NoNetwork


class StoredHead(nn.Module):
    """The head of a teacher whose hidden rows are stored: [..., H] → [..., V]."""

    def __init__(self, weight: Tensor, bias: Tensor | None, softcap: float | None) -> None:
        super().__init__()
        self.head = nn.Linear(weight.shape[1], len(weight), bias is not None, device="meta")
        self.head.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            self.head.bias = nn.Parameter(bias, requires_grad=False)
        self.softcap = softcap

    def forward(self, hidden: Tensor) -> Tensor:
        return soft_capped(self.head(hidden.to(self.head.weight.dtype)), self.softcap)


class FromDisk(Adapter):
    """Hands stored rows to a `StoredHead` or a `NoNetwork`: hidden rows or logits; of few classes nothing, [B, 0]."""

    def __init__(self, cache: DiskCache) -> None:
        super().__init__()
        self.cache = cache

    def rows(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is stored, in the places of the batch and on its device."""
        device = batch["index"].device
        length = batch["target"].shape[1] if self.cache.contents.per_token else 1
        padded = self.cache.padded(batch["index"], length, batch.get("view"))
        return {name: each.to(device) for name, each in padded.items()}

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[tuple[Tensor], dict[str, Any]]:
        if self.cache.contents.k:
            return (torch.empty(len(batch["index"]), 0, device=batch["index"].device),), {}
        (stored,) = self.rows(batch).values()
        return (stored,), {}

    def mask(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        return batch.get("attention_mask")


class CachedTeacher(Teacher):
    """A teacher of which a `DiskCache` holds the signals of the training samples, and its scores on the others.

    It is asked by `index`: batches of other samples than those of the training split mean nothing to it.
    """

    has_network = False
    adapter: FromDisk

    def __init__(self, cache: DiskCache, name: str) -> None:
        contents, about = cache.contents, cache.contents.teacher
        if contents.signals == "hidden":
            net: nn.Module = StoredHead(cache.head["weight"], cache.head.get("bias"), contents.softcap)
        else:
            net = NoNetwork(0 if contents.k else contents.classes)
        super().__init__(net, FromDisk(cache), name, about["source"])
        self.network: Teacher | None = None  # where layers are stored: takes its place, with `CachedSignals`
        self.stored_head = Head("head", softcap=contents.softcap) if contents.signals == "hidden" else None
        self.sha256 = about["sha256"]
        self.about_classes, self.other_classes = about["about_classes"], about["other_classes"]
        self.cost = about["cost"]
        kind = {"hidden": "hidden states", "topk": f"the {contents.k} most likely classes", "full": "all logits"}
        what = kind.get(contents.signals, f"{contents.k} sampled classes")
        self.remarks.append(f"its signals are read from {cache.folder}: {what} of each row ({contents.dtype})")

    @property
    def cache(self) -> DiskCache:
        return self.adapter.cache

    @property
    def available(self) -> Available:
        contents = self.cache.contents
        if contents.signals == "topk" or contents.signals == "sampled":
            return Available(frozenset({contents.signals}), contents.k)
        return Available()

    def fingerprint(self) -> str:
        return self.sha256

    def head(self, batch: Mapping[str, Tensor]) -> str:
        return "head"

    def compute(self, batch: Mapping[str, Tensor], training: bool, stop: bool = False) -> Signals:
        if not self.cache.contents.k:
            return super().compute(batch, training, stop)
        rows = self.adapter.rows(batch)
        tail = rows["log_tail"].float() if "log_tail" in rows else None
        sparse = SparseLogits(rows["classes"], rows["log_p"].float(), tail)
        none = torch.empty(len(batch["index"]), 0, device=batch["index"].device)
        return Signals(none, mask=self.adapter.mask(batch), sparse=sparse)

    def evaluation(
        self, data: Data, stage: Stage, task: Task, outputs: int | None, judged: nn.Module | None = None
    ) -> Evaluation | str:
        """See `Teacher`: as it was when the cache was written."""
        return stored_evaluation(self.cache, data, stage, task)


class CachedSignals(SignalSource):
    """What a cache holds, in place of the forwards of a teacher whose layers are read.

    The network is there, so that losses find its layers, but it does not run in training.

    Args:
        cached: the teacher of the cache.
        example: the network's signals of some batch: all that the losses read.

    Raises:
        UserError: some of them are not stored.
    """

    def __init__(self, cached: CachedTeacher, example: Signals) -> None:
        self.cached, self.example = cached, example
        self.names = by_sample(example).keys() - {"logits", "hidden"}
        stored = cached.cache.contents.layers
        if absent := sorted(self.names - stored.keys()):
            raise UserError(
                f"{cached.cache.folder} has no {absent[0]} of teacher {cached.name!r}, which a loss of this run reads; "
                f"it has {', '.join(stored)}. Write a cache for these losses: distill-cache with the settings of this "
                "run and another out=<folder>."
            )

    @property
    def available(self) -> Available:
        return self.cached.available

    def signals(self, batch: Mapping[str, Tensor]) -> Signals:
        """See `SignalSource`."""
        whole = self.cached.compute(batch, training=True)
        found = self.cached.cache.layers(self.names, batch["index"], batch.get("view"))
        values = {name: each.to(batch["index"].device) for name, each in found.items()}
        return replace(with_values(self.example, {"logits": whole.logits, **values}, whole.mask), sparse=whole.sparse)

    def evaluated(self, data: Data, stage: Stage, task: Task, judge: Callable[[], Evaluation]) -> Evaluation:
        """See `SignalSource`. What was known when the cache was written is not judged again."""
        known = stored_evaluation(self.cached.cache, data, stage, task)
        return judge() if isinstance(known, str) else known
