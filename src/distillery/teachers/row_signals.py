"""What is stored of a teacher's rows of logits: hidden states, the likeliest classes, drawn classes or all logits."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor

from distillery.core.errors import UserError
from distillery.core.numerics import log_softmax
from distillery.core.random import hash_pairs, uniforms
from distillery.losses.chunked import map_rows
from distillery.losses.levels import Headed
from distillery.losses.signals import Signals
from distillery.losses.sparse import TopK, drawn
from distillery.models.taps.end_before_head import before_heads, find_head
from distillery.tasks.task import Task
from distillery.teachers.cache_format import Kind
from distillery.teachers.frozen import Teacher
from distillery.teachers.stored_signals import by_sample
from distillery.teachers.write_disk_cache import Rows

STREAM = -5000  # the `view` of these random numbers, which no other draw has
Batch = Mapping[str, Tensor]


def few(
    kind: Kind, logits: Tensor, k: int, seed: int, index: Tensor, position: Tensor | None, view: int = 0
) -> dict[str, Tensor]:
    """The columns of signals=topk, sampled or full, of rows of logits [N,V].

    Args:
        seed: the drawn classes are a function of it, of each row's `index` and `position`, and of the view.
    """
    if kind == "full":
        return {"logits": logits}
    log_p = log_softmax(logits, 1.0)
    if kind == "topk":
        classes = log_p.topk(k).indices
        kept, tail = TopK.of(log_p, classes)
        return {"classes": classes, "log_p": kept, "log_tail": tail}
    of_row = index if position is None else hash_pairs(index, position)
    classes = drawn(log_p, uniforms(seed, view, of_row, STREAM, k))
    return {"classes": classes, "log_p": log_p.gather(-1, classes)}


@dataclass
class Scorer:
    """Computes rows of a teacher as training does: before its head, where that is known, and in chunks.

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

    def rows(self, batch: Batch) -> tuple[Signals, Batch]:
        """The rows that may bear loss of a `moved` batch: logits, or hidden rows with the head."""
        context: AbstractContextManager[object] = self.precision()
        with context, before_heads([self.teacher]):
            signals = self.teacher.compute(batch, training=True)
        return self.task.rows(signals, batch)

    def logits(self, batch: Batch) -> Tensor:
        """The rows of logits that may bear loss, [N,V]."""
        rows, labelled = self.rows(self.moved(batch))
        return map_rows(lambda part, _: {"logits": part.logits}, rows, labelled, self.task.rows_per_chunk)["logits"]

    def stored(self, batch: Batch, kind: Kind, k: int, seed: int) -> Rows:
        """What is stored of a batch."""
        rows, labelled = self.rows(self.moved(batch))
        index, position = labelled["index"], labelled["position"] if self.task.rows_are == "tokens" else None
        view = int(batch["view"][0]) if "view" in batch else 0
        if kind == "hidden":
            assert rows.headed is not None
            return Rows({"hidden": rows.headed.hidden}, index, position, view, by_sample(rows))

        def columns(part: Signals, own: Batch) -> dict[str, Tensor]:
            place = None if position is None else own["position"]
            return few(kind, part.logits, k, seed, own["index"], place, view)

        found = map_rows(columns, rows, labelled, self.task.rows_per_chunk)
        return Rows(found, index, position, view, by_sample(rows))

    def headed(self, batch: Batch) -> Headed:
        """The hidden rows of a batch and the head, before which forwards end from now on.

        Raises:
            UserError: the logits are not those of a linear layer.
        """
        batch = self.moved(batch)
        if self.teacher.known_head is None:
            try:
                find_head(self.teacher, batch)
            except UserError as why:
                raise UserError(
                    f"signals=hidden: of teacher {self.teacher.name!r}, {why}. Choose signals=topk or signals=sampled."
                ) from None
        found = self.rows(batch)[0].headed
        assert found is not None
        return found
