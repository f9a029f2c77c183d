"""`distill-cache`: a teacher's signals for all training samples, and its scores, written to a folder."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning as L
import numpy as np
import torch
from annotated_types import Gt, Lt
from omegaconf import DictConfig
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.utils.data import DataLoader

from distillery.config.build import Parts, build
from distillery.config.cached_teachers import refuse_several, signals_key
from distillery.config.check import check
from distillery.core.errors import UserError, did_you_mean
from distillery.core.process import processes
from distillery.core.random import permutation
from distillery.core.terminal import plain_console, say
from distillery.data.sampler import BatchKey, SeededBatchSampler
from distillery.models.cost import count_embedding_parameters, count_flops, count_parameters
from distillery.models.taps.network import probe
from distillery.runs.folder_lock import FolderLock
from distillery.runs.run import arithmetic
from distillery.runs.trainer import hush_lightning
from distillery.tasks.task import row_labels
from distillery.teachers.cache_format import MANIFEST, Contents, Kind, Layer, Layout
from distillery.teachers.choose_k import ROWS, as_table, candidates, losses_by_k, smallest
from distillery.teachers.frozen import Teacher
from distillery.teachers.row_signals import Scorer
from distillery.teachers.stored_evaluations import write_evaluations
from distillery.teachers.stored_signals import by_sample
from distillery.teachers.without_network import NO_COST
from distillery.teachers.write_disk_cache import EVERY, PROGRESS, finish, refuse_another, tell_size, write_cache

HALF = "float16"  # of log-probabilities, unless another type is asked for


@dataclass(frozen=True)
class Settings:
    """What `distill-cache` is told besides a run's config, see `configs/cache.yaml`."""

    out: str
    signals: Kind = "topk"
    k: PositiveInt | Literal["auto"] = 32
    dtype: Literal["auto", "float16", "bfloat16", "float32", "int8"] = "auto"
    tolerance: Annotated[float, Gt(0), Lt(1)] = 0.05
    teacher: str = "main"

    @property
    def folder(self) -> Path:
        return Path(self.out)


def write_signals(cfg: DictConfig, settings: Settings, every: float = EVERY) -> Contents:
    """Write the signals of a teacher of the run that `cfg` describes, or go on where a killed process has ended.

    They are computed in the batches of the run's first epochs, one for each view of the samples, and in its precision:
    a run reads in these epochs what the teacher would have computed. Of images the layers are written, too, that the
    losses of the run read.

    Args:
        every: see `write_cache`.

    Raises:
        UserError: the folder holds something else, the disk is too small, or there is no such teacher.
    """
    cfg = cfg.copy()
    if isinstance((cfg.teachers.get(settings.teacher) or {}).get("cache"), str | bool):
        cfg.teachers[settings.teacher].cache = False
    spec = check(cfg)
    if len(spec.stages) > 1:
        raise UserError("distill-cache works for runs without stages: set stages=none, and the data of the stage.")
    with arithmetic(spec.cfg):
        parts = build(spec.stages[0])
        teacher = parts.distiller.frozen.get(settings.teacher)
        if teacher is None or not (teacher.has_network or teacher.available.k):
            names = [name for name, each in parts.distiller.frozen.items() if each.has_network]
            raise UserError(
                f"teacher={settings.teacher}: the run has no such teacher network." + did_you_mean("", names)
            )
        if (most := teacher.available.k) and not (settings.signals == "topk" and settings.k in range(1, most + 1)):
            raise UserError(
                f"signals={settings.signals} k={settings.k}: teacher {settings.teacher!r} gives {teacher.available}. "
                f"Set signals=topk, and k to {most} at most."
            )
        with FolderLock(settings.folder):
            return _Pass(parts, teacher, settings).write(every)


class _Pass:
    """One pass of a teacher over the training samples."""

    def __init__(self, parts: Parts, teacher: Teacher, settings: Settings) -> None:
        self.parts, self.teacher, self.settings = parts, teacher, settings
        self.data, self.task = parts.data, parts.distiller.task
        own, trainer = parts.cfg.teachers[settings.teacher], parts.cfg.trainer
        refuse_several(settings.teacher, own, self.data)
        if self.task.rows_are not in ("samples", "tokens"):
            raise UserError(
                f"distill-cache keeps signals of samples and of tokens, but this task has labels of "
                f"{self.task.rows_are}. Set teachers.{settings.teacher}.cache=true, which keeps them in memory."
            )
        self.key = signals_key(teacher, own, self.data, str(trainer.precision))  # before its weights are cast
        hush_lightning()
        made = L.Trainer(
            accelerator=trainer.accelerator, devices=1, precision=trainer.get("precision", "32-true"), logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        precision = made.precision_plugin
        dtype = next(precision.convert_module(nn.Linear(1, 1)).parameters()).dtype
        if self.data.kind == "texts":  # of them only the logits are written
            teacher.tap((), parts.example)
            teacher.tap_attention((), parts.example)
        teacher.place(made.strategy.root_device, dtype)
        self.scorer = Scorer(teacher, self.task, precision.forward_context, precision.convert_input)
        self.known_head = teacher.known_head
        self.keys = list(self._keys(processes(trainer) * trainer.get("num_nodes", 1)))
        self.dataset = self.data.dataset("train")

    def _keys(self, world: int) -> Iterator[BatchKey]:
        """The batches of so many processes in an epoch of each view, and those of the samples that they leave out."""
        sampler, size = self.data.sampler("train"), max(1, self.data.batch_size // world)
        for epoch in range(self.data.distinct_views or 1):
            sampler.set_epoch(epoch)
            left = set(self.data.splits["train"].indices.tolist())
            for key in sampler:
                left -= set(key.positions)
                yield from (key._replace(positions=key.positions[rank::world]) for rank in range(world))
            rest = sorted(left)
            if rest and self.data.kind == "images":  # the last bits of a value depend on the size of its batch
                rest = [*islice(cycle(rest), -(-len(rest) // size) * size)]
            rest_keys = SeededBatchSampler(torch.tensor(rest), size, **self.data.order("train")) if rest else ()
            yield from (key._replace(epoch=epoch) for key in rest_keys)

    def batches(self, start: int = 0) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(self.dataset, sampler=self.keys[start:], batch_size=None, num_workers=self.data.workers)

    def write(self, every: float) -> Contents:
        settings, folder = self.settings, self.settings.folder
        there = Contents.read(folder) if (folder / MANIFEST).is_file() else None
        contents, layout, head = self._planned(there)
        if there is not None:
            refuse_another(folder, contents)
            if there.complete:
                (folder / PROGRESS).unlink(missing_ok=True)  # killed right before the end
                say(f"{folder} already holds these signals, complete: nothing to do.")
                return there
        tell_size(contents, folder)
        begun = time.monotonic()
        seed = int(self.parts.cfg.seed)
        rows_of = partial(self.scorer.stored, kind=contents.signals, k=contents.k, seed=seed)
        written = write_cache(folder, contents, layout, self.batches, len(self.keys), rows_of, head, every)
        seconds, rows = time.monotonic() - begun, contents.views * contents.rows
        say(f"{folder}: written in {seconds:,.0f} s ({rows / max(seconds, 1e-9):,.0f} rows/s). Scoring the teacher …")
        self.teacher.known_head = self.known_head  # it is scored as a run scores it
        evaluations, files = write_evaluations(folder, self.teacher, self.data, self.task, self.parts.distiller.outputs)
        written = replace(written, evaluations=evaluations, sha256=written.sha256 | files)
        finish(folder, written)
        say(f"Use it: teachers.{settings.teacher}.cache={folder}")
        return written

    def _planned(self, there: Contents | None) -> tuple[Contents, Layout, dict[str, Tensor]]:
        """What the folder will hold, where the rows of each sample lie, and the head, where it is needed."""
        settings, teacher, example = self.settings, self.teacher, self.parts.example
        logits = self.scorer.logits(example)
        index, lengths, length = self._row_counts(logits.shape[-1])
        head: dict[str, Tensor] = {}
        width, softcap = 0, None
        own = logits.dtype
        if settings.signals == "hidden":
            headed = self.scorer.headed(example)
            width, softcap, own = headed.hidden.shape[-1], headed.softcap, headed.hidden.dtype
            head = {"weight": headed.weight} | ({} if headed.bias is None else {"bias": headed.bias})
        few = settings.signals in ("topk", "sampled")
        if few and not self.task.is_distribution():
            raise UserError(f"signals={settings.signals}: this task does not predict classes. Choose signals=full.")
        auto = HALF if few else str(own).removeprefix("torch.")
        cfg = self.parts.cfg
        contents = Contents(
            signals=settings.signals,
            k=0,
            dtype=auto if settings.dtype == "auto" else settings.dtype,
            seed=cfg.seed if settings.signals == "sampled" else 0,
            classes=logits.shape[-1],
            width=width,
            softcap=softcap,
            samples=len(index),
            rows=int(lengths.sum()),
            per_token=self.task.rows_are == "tokens",
            length=length,
            views=self.data.distinct_views or 1,
            layers=self._layers(),
            key=self.key,
            teacher={
                "source": teacher.source,
                "sha256": teacher.sha256,
                "about_classes": teacher.about_classes,
                "other_classes": teacher.other_classes,
                "cost": self._cost(),
            },
        )
        if few:
            contents = replace(contents, k=self._k(contents, there))
        return contents, Layout(index, lengths if self.task.rows_are == "tokens" else None), head

    def _layers(self) -> dict[str, Layer]:
        """What is stored of the layers that the losses read."""
        example, asked = self.parts.example, self.settings.dtype
        signals = self.scorer.rows(self.scorer.moved(example))[0]
        found: dict[str, Layer] = {}
        for name, values in by_sample(signals).items():
            if name in ("logits", "hidden"):
                continue
            if len(values) != len(example["index"]):
                raise UserError(
                    f"{name} of teacher {self.teacher.name!r} is {tuple(values.shape)} for {len(example['index'])} "
                    "images: a cache keeps what each image gives. Choose another layer for the losses that read it."
                )
            own = str(values.dtype).removeprefix("torch.")
            found[name] = Layer(shape=[*values.shape[1:]], dtype=own, stored=own if asked == "auto" else asked)
        return found

    def _row_counts(self, classes: int) -> tuple[Any, Any, int]:
        """The samples in ascending order, how many rows each has, and more than the largest position in a sample.

        `counts` then says how many rows have each class as their target.
        """
        self.counts = torch.zeros(classes)
        if self.task.rows_are == "samples":
            train = self.data.splits["train"]
            self._count(train.targets[train.indices])
            return train.indices.sort().values.numpy(), np.ones(len(train.indices), dtype=np.int64), 1
        index, counts, length = [], [], 1
        seen: set[int] = set()
        for key, batch in zip(self.keys, self.batches(), strict=True):
            labelled = row_labels(self.task, batch)
            self._count(labelled["target"])
            if len(labelled["position"]):
                length = max(length, int(labelled["position"].max()) + 1)
            for sample in key.positions:
                if sample not in seen:
                    index.append(sample)
                    counts.append(int((labelled["index"] == sample).sum()))
            seen.update(key.positions)
        order = np.argsort(index)
        return np.array(index)[order], np.array(counts)[order], length

    def _count(self, target: Tensor) -> None:
        if self.task.is_distribution():
            self.counts += target[(target >= 0) & (target < len(self.counts))].bincount(minlength=len(self.counts))

    def _k(self, contents: Contents, there: Contents | None) -> int:
        """The number of classes of each row, chosen if that is asked for and has not been done."""
        asked, classes = self.settings.k, contents.classes
        if asked == "auto":
            if contents.signals == "sampled":
                raise UserError(
                    "k=auto is only for signals=topk: sampled classes have no bias, only noise. Set k to a number."
                )
            return there.k if there is not None else self._chosen(contents)
        if asked > classes and self.settings.signals == "topk":
            raise UserError(f"k={asked}: the teacher has only {classes} classes. Set a smaller k, or signals=full.")
        return asked

    def _chosen(self, contents: Contents) -> int:
        """The least k that is within the tolerance, on some of the training rows. Prints what each k loses."""
        student, tolerance = self.parts.distiller.student, self.settings.tolerance
        trained = self.parts.cfg.student.get("weights") or self.parts.cfg.student.get("initialise")
        teachers: list[Tensor] = []
        students: list[Tensor] = []
        for number in permutation(0, 0, len(self.keys)).tolist():
            batch = self.dataset[self.keys[number]]
            teachers.append(self.scorer.logits(batch).cpu())
            if trained:
                students.append(self.task.rows(probe(student, batch), batch)[0].logits)
            if sum(map(len, teachers)) >= ROWS:
                break
        theirs = torch.cat(teachers)[:ROWS]
        ours = torch.cat(students)[:ROWS] if trained else self.counts.add(1).log().expand_as(theirs)
        ks = candidates(contents.classes)
        losses = losses_by_k(theirs, ours, ks)
        what = "the student" if trained else "the class frequencies, which a student learns first"
        title = f"signals=topk on {len(theirs):,} rows, compared with {what}"
        plain_console().print(as_table(losses, {k: replace(contents, k=k).bytes_a_row for k in ks}, title))
        found = smallest(losses, tolerance)
        if found.gradient > tolerance:
            say(f"No k up to {found.k} has a gradient error within tolerance={tolerance:g}. signals=hidden is exact.")
        say(f"k={found.k}: gradient error {found.gradient:.1%} (tolerance={tolerance:g})")
        return found.k

    def _cost(self) -> dict[str, Any]:
        """Without the latency, which no two measurements agree in."""
        if not self.teacher.has_network:
            return NO_COST
        sample = self.scorer.moved(self.data.example(1, "test"))
        net = self.teacher.net
        return NO_COST | {
            "params": count_parameters(net),
            "embedding_params": count_embedding_parameters(net),
            "flops": count_flops(net, self.teacher.bound(sample)),
        }
