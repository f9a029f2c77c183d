"""Compares a part of what a cache holds with what the batches and the teacher say now."""

from collections.abc import Mapping

import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.core.numerics import log_softmax
from distillery.core.random import hash_key
from distillery.data.module import Data
from distillery.data.sampler import SeededBatchSampler
from distillery.losses.levels import Headed
from distillery.losses.sparse import TopK
from distillery.tasks.task import Task, row_labels
from distillery.teachers.cache_format import LARGEST, Contents
from distillery.teachers.disk_cache import DiskCache
from distillery.teachers.frozen import Teacher
from distillery.teachers.row_signals import Scorer
from distillery.teachers.stored_signals import ATTENTION, LAYERS

RESCORED, MOST = 0.001, 10_000  # the share of rows that the teacher computes again, and how many at most
# By how much log-probabilities may differ that were computed in other batches: the largest difference where the teacher
# computes in 32 bits, and the mean where it computes in 16.
EXACT, COARSE = 1e-3, 0.1
DISAGREES = "the cache does not agree with the teacher"


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
    if teacher is not None:
        _tap_stored(teacher, contents, data.example())
    values = "log-probabilities" if task.is_distribution() else "outputs"
    gaps: dict[str, list[Tensor]] = {}
    sampler = SeededBatchSampler(torch.tensor(chosen), min(8, data.batch_size), **data.order("train"))
    sampler.set_epoch(hash_key(seed, len(index)) % contents.views)
    for key in sampler:
        batch = dataset[key]
        labelled = row_labels(task, batch)
        stored, counts = cache.rows(batch["index"], batch.get("view"))
        same = len(labelled["index"]) == int(counts.sum())
        if not same or (task.rows_are == "tokens" and not torch.equal(stored["positions"], labelled["position"])):
            raise UserError(f"{DISAGREES}: it was written for other tokens with loss.")
        if scorer is not None:
            now = scorer.stored(batch, "full", 0, 0)
            gaps.setdefault(values, []).append(_gaps(cache, stored, now.columns["logits"].cpu(), task))
            for name, before in cache.layers(contents.layers, batch["index"], batch.get("view")).items():
                gaps.setdefault(name, []).append(_relative(before, now.layers[name].cpu()))
    what = f"{rows:,} of its {contents.views * contents.rows:,} rows, drawn at random"
    if not gaps:
        return f"the teacher was not loaded, so nothing was computed again; {what}, are undamaged"
    stored_as = {values: contents.dtype} | {name: layer["stored"] for name, layer in contents.layers.items()}
    remarks = []
    for name, parts in gaps.items():
        if contents.key["precision"] in ("32-true", "64-true"):
            allowed, measured, how = _allowed(stored_as[name]), torch.cat(parts).max().item(), "at most"
        else:
            allowed, measured, how = COARSE, torch.cat(parts).mean().item(), "on average"
        remarks.append(f"{name} differ by {how} {measured:.2g}")
        if not measured <= allowed:  # also NaN
            said = f"{what}, were computed again: {remarks[-1]}"
            raise UserError(f"{DISAGREES}: {said}, and {allowed:.2g} is allowed.")
    return f"{what}, were computed again: {', '.join(remarks)}"


def _tap_stored(teacher: Teacher, contents: Contents, batch: Mapping[str, Tensor]) -> None:
    """Let the teacher record the layers that are stored."""
    layers, attention = (
        [name.removeprefix(kind) for name in contents.layers if name.startswith(kind)] for kind in (LAYERS, ATTENTION)
    )
    teacher.tap(layers, batch)
    teacher.tap_attention({operand.rsplit(".", 1)[0] for operand in attention}, batch)


def _allowed(dtype: str) -> float:
    """Relative to the size of a value, or for int8 of the largest in its row: twice what rounding may move it."""
    return EXACT + (2 / LARGEST if dtype == "int8" else 2 * torch.finfo(getattr(torch, dtype)).eps)


def _relative(found: Tensor, expected: Tensor) -> Tensor:
    """The largest difference of each sample, over 1 + its largest value: [B, ...], [B, ...] → [B]."""
    largest = expected.abs().flatten(1).amax(1)
    return (found.float() - expected.float()).abs().flatten(1).amax(1) / (1 + largest)


def _gaps(cache: DiskCache, stored: Mapping[str, Tensor], logits: Tensor, task: Task) -> Tensor:
    """How far the stored rows are from the teacher's: of each the largest difference, over 1 + the value's size."""
    log_p = log_softmax(logits, 1.0) if task.is_distribution() else logits.float()
    if "classes" in stored:
        classes, kept = stored["classes"], stored["log_p"].float()
        pairs = [(kept, log_p.gather(-1, classes))]
        if "log_tail" in stored:  # no class is more likely than these, and the tail is the mass of all others
            best = TopK.of(log_p, log_p.topk(classes.shape[-1]).indices)
            pairs += [(kept.sort(descending=True).values, best.kept)]
            pairs += [(stored["log_tail"].float().unsqueeze(-1), best.tail.unsqueeze(-1))]
    else:
        if "hidden" in stored:
            head = cache.head
            made = Headed(stored["hidden"], head["weight"], head.get("bias"), cache.contents.softcap).logits()
        else:
            made = stored["logits"].float()
        made = made[..., : logits.shape[-1]]
        pairs = [(log_softmax(made, 1.0) if task.is_distribution() else made, log_p)]
    gaps = []
    for found, theirs in pairs:
        over = theirs.abs().amax(-1, keepdim=True) if cache.contents.dtype == "int8" else theirs.abs()
        gap = (found - theirs).abs() / (1 + over)
        gaps.append(gap.masked_fill(found == theirs, 0.0).amax(-1))  # -inf of a tail without classes
    return torch.stack(gaps).amax(0)
