"""`distill-cache`: a teacher's signals for all training samples, and its scores, written to a folder."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning as L
import numpy as np
import torch
from annotated_types import Gt, Lt
from omegaconf import DictConfig
from pydantic import PositiveInt
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader

from distillery.config.build import Parts, build
from distillery.config.cached_teachers import refuse_several, signals_key
from distillery.config.check import check
from distillery.core.errors import UserError, did_you_mean
from distillery.core.files import atomic_write, sha256_of
from distillery.core.random import permutation
from distillery.core.terminal import plain_console, say
from distillery.data.module import Stage
from distillery.data.sampler import BatchKey, SeededBatchSampler
from distillery.models.cost import count_embedding_parameters, count_flops, count_parameters
from distillery.models.taps.network import probe
from distillery.runs.folder_lock import FolderLock
from distillery.runs.run import cpu_threads
from distillery.runs.trainer import hush_lightning
from distillery.tasks.task import row_labels
from distillery.teachers.cached_teacher import described, evaluation_file
from distillery.teachers.choose_k import ROWS, as_table, candidates, losses_by_k, smallest
from distillery.teachers.disk_cache import MANIFEST, Contents, Kind, Layout
from distillery.teachers.frozen import Teacher
from distillery.teachers.row_signals import Scorer
from distillery.teachers.without_network import NO_COST
from distillery.teachers.write_disk_cache import EVERY, PROGRESS, Rows, finish, refuse_another, tell_size, write_cache

HALF = "float16"  # of log-probabilities, unless another type is asked for


@dataclass(frozen=True)
class Settings:
    """What `distill-cache` is told besides a run's config, see `configs/cache.yaml`."""

    out: str
    signals: Kind = "topk"
    k: PositiveInt | Literal["auto"] = 32
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    tolerance: Annotated[float, Gt(0), Lt(1)] = 0.05
    teacher: str = "main"

    @property
    def folder(self) -> Path:
        return Path(self.out)


def write_signals(cfg: DictConfig, settings: Settings, every: float = EVERY) -> Contents:
    """Write the signals of a teacher of the run that `cfg` describes, or go on where a killed process has ended.

    They are computed in the batches of the run's first epoch, in its precision: a run of that epoch reads what the
    teacher would have computed.

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
    with cpu_threads(spec.cfg):
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
        teacher.tap((), parts.example)
        teacher.tap_attention((), parts.example)
        teacher.place(made.strategy.root_device, dtype)
        self.scorer = Scorer(teacher, self.task, precision.forward_context, precision.convert_input)
        self.known_head = teacher.known_head
        self.keys = list(self._keys())
        self.dataset = self.data.dataset("train")

    def _keys(self) -> Iterator[BatchKey]:
        """The batches of the run's first epoch, and those of the samples that they leave out."""
        left = set(self.data.splits["train"].indices.tolist())
        for key in self.data.sampler("train"):
            left -= set(key.positions)
            yield key
        if left:
            rest = torch.tensor(sorted(left))
            yield from SeededBatchSampler(rest, self.data.batch_size, **self.data.order("train"))

    def batches(self, start: int = 0) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(self.dataset, sampler=self.keys[start:], batch_size=None, num_workers=self.data.workers)

    def write(self, every: float) -> Contents:
        settings, folder = self.settings, self.settings.folder
        there = Contents.read(folder) if (folder / MANIFEST).is_file() else None
        contents, layout, head = self._planned(there)
        self.k = contents.k
        if there is not None:
            refuse_another(folder, contents)
            if there.complete:
                (folder / PROGRESS).unlink(missing_ok=True)  # killed right before the end
                say(f"{folder} already holds these signals, complete: nothing to do.")
                return there
        tell_size(contents, folder)
        begun = time.monotonic()
        written = write_cache(folder, contents, layout, self.batches, len(self.keys), self._rows, head, every)
        seconds = time.monotonic() - begun
        say(
            f"{folder}: written in {seconds:,.0f} s ({contents.rows / max(seconds, 1e-9):,.0f} rows/s). "
            "Scoring the teacher …"
        )
        evaluations = self._evaluations()
        files = {evaluation_file(stage): each.pop("sha256") for stage, each in evaluations.items()}
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

    def _row_counts(self, classes: int) -> tuple[Any, Any, int]:
        """The samples in ascending order, how many rows each has, and more than the largest position in a sample.

        `counts` then says how many rows have each class as their target.
        """
        self.counts = torch.zeros(classes)
        index, counts, length = [], [], 1
        seen: set[int] = set()
        for key, batch in zip(self.keys, self.batches(), strict=True):
            labelled = row_labels(self.task, batch)
            self._count(labelled["target"])
            if self.task.rows_are == "tokens" and len(labelled["position"]):
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

    def _rows(self, batch: Mapping[str, Tensor]) -> Rows:
        settings = self.settings
        return Rows(*self.scorer.columns(batch, settings.signals, self.k, int(self.parts.cfg.seed)))

    def _cost(self) -> dict[str, Any]:
        """Without the latency, which no two measurements agree in."""
        if not self.teacher.has_network:
            return NO_COST
        sample = {key: value[:1].to(self.teacher.device) for key, value in self.parts.example.items()}
        net = self.teacher.net
        return NO_COST | {
            "params": count_parameters(net),
            "embedding_params": count_embedding_parameters(net),
            "flops": count_flops(net, self.teacher.bound(sample)),
        }

    def _evaluations(self) -> dict[str, Any]:
        """The teacher's scores where runs ask for them; the predictions lie in files."""
        found: dict[str, Any] = {}
        self.teacher.known_head = self.known_head  # it is scored as a run scores it
        data, outputs = self.data, self.parts.distiller.outputs
        data.setup("test")
        stages: list[Stage] = ["val" if data.sizes["val"] else "train", "test"]
        for stage in stages if not self.teacher.other_classes else ():
            scored = self.teacher.evaluation(data, stage, self.task, outputs)
            if isinstance(scored, str):
                continue
            tensors = {"index": scored.index, "target": scored.target, "predicted": scored.predicted}
            tensors |= {} if scored.probabilities is None else {"probabilities": scored.probabilities}
            file = evaluation_file(stage)
            with atomic_write(self.settings.folder / file) as unfinished:
                unfinished.write_bytes(save({name: each.contiguous() for name, each in tensors.items()}))
            found[stage] = {
                "score": scored.score,
                "loss": scored.loss,
                "metrics": scored.metrics,
                "data": data.split_sha256(stage),
                "task": described(self.task),
                "sha256": sha256_of(self.settings.folder / file),
            }
        return found
