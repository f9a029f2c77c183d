"""A teacher whose signals for the training samples lie on disk: it needs no network to train with."""

from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.core.numerics import log_softmax
from distillery.core.random import hash_key
from distillery.data.module import Data, Stage
from distillery.data.sampler import SeededBatchSampler
from distillery.losses.levels import Available, Headed, SparseLogits, soft_capped
from distillery.losses.signals import Signals
from distillery.models.adapters import Adapter
from distillery.models.taps.head import Head
from distillery.tasks.evaluate import Evaluation
from distillery.tasks.task import Task, row_labels
from distillery.teachers.disk_cache import DiskCache
from distillery.teachers.frozen import Teacher
from distillery.teachers.row_signals import Scorer
from distillery.teachers.without_network import NoNetwork

RESCORED, MOST = 0.001, 10_000  # the share of rows that the teacher computes again, and how many at most
# By how much log-probabilities may differ that were computed in other batches: the largest difference where the teacher
# computes in 32 bits, and the mean where it computes in 16.
EXACT, COARSE = 1e-3, 0.1
BESIDE_SCORE = ("metrics", "monitor", "classes")  # of a task: it scores the same with and without
DISAGREES = "the cache does not agree with the teacher"


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
        return {name: each.to(device) for name, each in self.cache.padded(batch["index"], length).items()}

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
        known = self.cache.contents.evaluations.get(stage)
        if known is None:
            return f"{self.cache.folder} has no score for the {stage} split"
        if (known["data"], known["task"]) != (data.split_sha256(stage), described(task)):
            return f"{self.cache.folder} has a {stage} score for other data or other settings of the task"
        stored = load_file(self.cache.folder / evaluation_file(stage))
        metrics = {name: known["metrics"][name] for name in task.metrics if name in known.get("metrics", ())}
        return Evaluation(known["score"], known["loss"], **stored, metrics=metrics)


def evaluation_file(stage: str) -> str:
    return f"evaluation_{stage}.safetensors"


def described(task: Task) -> str:
    """What a teacher's score depends on besides the data."""
    settings = {name: value for name, value in vars(task).items() if name not in BESIDE_SCORE}
    return f"{type(task).__name__} {settings | {'weight': None, 'rows_per_chunk': None}}"


def rescored(cache: DiskCache, data: Data, task: Task, teacher: Teacher | None, seed: int) -> str:
    """Compare a random part of the stored rows with what the batches and, if it is there, the teacher say now.

    Returns: for the user: what was compared.

    Raises:
        UserError: they differ.
    """
    contents = cache.contents
    chosen, rows = [], 0
    index = data.splits["train"].indices
    order = torch.randperm(len(index), generator=torch.Generator().manual_seed(hash_key(seed, len(index)) >> 1))
    for sample in index[order].tolist():
        chosen.append(sample)
        rows += int(cache.layout.lengths[cache.layout.numbers(index.new_tensor([sample]).numpy())[0]])
        if len(chosen) > 1 and rows >= min(RESCORED * contents.rows, MOST):
            break
    dataset = data.dataset("train")
    scorer = None if teacher is None else Scorer(teacher, task)
    gaps = []
    for key in SeededBatchSampler(torch.tensor(chosen), min(8, data.batch_size), **data.order("train")):
        batch = dataset[key]
        labelled = row_labels(task, batch)
        stored, counts = cache.rows(batch["index"])
        same = len(labelled["index"]) == int(counts.sum())
        if not same or (task.rows_are == "tokens" and not torch.equal(stored["positions"], labelled["position"])):
            raise UserError(f"{DISAGREES}: it was written for other tokens with loss.")
        if scorer is not None:
            gaps.append(_gaps(cache, stored, scorer.logits(batch).cpu(), task))
    what = f"{rows:,} of its {contents.rows:,} rows, drawn at random"
    if not gaps:
        return f"the teacher was not loaded, so nothing was computed again; {what}, are undamaged"
    gap = torch.cat(gaps)
    values = "log-probabilities" if task.is_distribution() else "outputs"
    if contents.key["precision"] in ("32-true", "64-true"):
        allowed, measured, how = _allowed(contents.dtype), gap.max().item(), "at most"
    else:
        allowed, measured, how = COARSE, gap.mean().item(), "on average"
    said = f"{what}, were computed again: {values} differ by {how} {measured:.2g}"
    if measured > allowed:
        raise UserError(f"{DISAGREES}: {said}, and {allowed:.2g} is allowed.")
    return said


def _allowed(dtype: str) -> float:
    return EXACT + 2 * torch.finfo(getattr(torch, dtype)).eps  # relative to the size of a value


def _gaps(cache: DiskCache, stored: Mapping[str, Tensor], logits: Tensor, task: Task) -> Tensor:
    """How far the stored rows are from the teacher's: of each the largest difference, over 1 + the value's size."""
    log_p = log_softmax(logits, 1.0) if task.is_distribution() else logits.float()
    if "classes" in stored:
        found, theirs = stored["log_p"].float(), log_p.gather(-1, stored["classes"])
    else:
        if "hidden" in stored:
            head = cache.head
            made = Headed(stored["hidden"], head["weight"], head.get("bias"), cache.contents.softcap).logits()
        else:
            made = stored["logits"].float()
        made = made[..., : logits.shape[-1]]
        found, theirs = log_softmax(made, 1.0) if task.is_distribution() else made, log_p
    return ((found - theirs).abs() / (1 + theirs.abs())).amax(-1)
