"""What is stored of a teacher's rows of logits: hidden states, the likeliest classes, drawn classes or all logits."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.core.numerics import log_softmax
from distillery.core.random import hash_pairs, uniforms
from distillery.losses.levels import Headed
from distillery.losses.signals import Signals
from distillery.losses.sparse import TopK, drawn
from distillery.tasks.task import Task
from distillery.teachers.disk_cache import Kind
from distillery.teachers.frozen import Teacher

STREAM = -5000  # the `view` of these random numbers, which no other draw has
HIDDEN, WEIGHT, BIAS = "embedding", "head:weight", "head:bias"
Batch = Mapping[str, Tensor]


def row_places(task: Task, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
    """Which of a batch's logits are rows: their places among all [N], the sample of each, and the place in it."""
    shape = batch["target"].shape if task.per_token else batch["index"].shape
    numbers = torch.arange(shape.numel(), dtype=torch.float64, device=batch["index"].device).view(*shape, 1)
    rows, labelled = task.rows(Signals(numbers), batch)
    return rows.logits[:, 0].long(), labelled["index"], labelled["position"] if task.per_token else None


def few(kind: Kind, logits: Tensor, k: int, seed: int, index: Tensor, position: Tensor | None) -> dict[str, Tensor]:
    """The columns of signals=topk, sampled or full, of rows of logits [N,V].

    Args:
        seed: the drawn classes are a function of it and of each row's `index` and `position`.
    """
    if kind == "full":
        return {"logits": logits}
    log_p = log_softmax(logits, 1.0)
    if kind == "topk":
        classes = log_p.topk(k).indices
        kept, tail = TopK.of(log_p, classes)
        return {"classes": classes, "log_p": kept, "log_tail": tail}
    of_row = index if position is None else hash_pairs(index, position)
    classes = drawn(log_p, uniforms(seed, 0, of_row, STREAM, k))
    return {"classes": classes, "log_p": log_p.gather(-1, classes)}


@dataclass
class Scorer:
    """Computes rows of a teacher.

    Attributes:
        precision: makes the context of its forward.
        convert: brings a batch into its precision.
    """

    teacher: Teacher
    task: Task
    precision: Any = nullcontext
    convert: Any = field(default=lambda batch: batch)

    def moved(self, batch: Batch) -> Batch:
        """The batch on the teacher's device, in its precision."""
        return cast(Batch, self.convert({key: value.to(self.teacher.device) for key, value in batch.items()}))

    def compute(self, batch: Batch, stop: bool = False) -> Signals:
        """One forward of a `moved` batch; `stop`: up to the last tap."""
        context: AbstractContextManager[object] = self.precision()
        with context:
            return self.teacher.compute(batch, training=True, stop=stop)

    def logits(self, batch: Batch) -> Tensor:
        """The rows of logits that may bear loss, [N,V]."""
        batch = self.moved(batch)
        return self.task.rows(self.compute(batch), batch)[0].logits

    def columns(self, batch: Batch, kind: Kind, k: int, seed: int) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
        """What is stored of the rows of a batch, their samples and their places in these."""
        batch = self.moved(batch)
        places, index, position = row_places(self.task, batch)
        if kind == "hidden":
            hidden = self.compute(batch, stop=True).layers[HIDDEN]
            rows = hidden.flatten(0, 1)[places] if self.task.per_token else hidden[places]
            return {"hidden": rows}, index, position
        logits = self.task.rows(self.compute(batch), batch)[0].logits
        return few(kind, logits, k, seed, index, position), index, position

    def tap_head(self, batch: Batch) -> Headed:
        """Record the input of the head from now on, and run no more; returns its rows of the batch with the head.

        Raises:
            UserError: the logits are not those of a linear layer.
        """
        teacher, batch = self.teacher, self.moved(batch)
        head = teacher.net.get_submodule(teacher.head(batch))
        bias = getattr(head, "bias", None)
        taps = [HIDDEN, WEIGHT, *([] if bias is None else [BIAS])]
        teacher.tap(taps, batch)
        found = self.compute(batch)
        softcap = getattr(getattr(teacher.net, "config", None), "final_logit_softcapping", None)
        headed = Headed(found.layers[HIDDEN], found.layers[WEIGHT], found.layers.get(BIAS), softcap)
        scale = found.logits.float().abs().max().clamp_min(1)
        loose = 1e-4 if found.logits.dtype in (torch.float32, torch.float64) else 5e-2
        made = headed.logits()
        if made.shape != found.logits.shape or (made - found.logits).abs().max() > loose * scale:
            raise UserError(
                f"signals=hidden: the logits of teacher {teacher.name!r} are not those of its last linear layer. "
                "Choose signals=topk or signals=sampled."
            )
        teacher.stop_early(batch)
        return headed
