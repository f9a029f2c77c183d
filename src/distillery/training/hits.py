"""How often the student in training predicts the right class, and the one that a teacher predicts."""

from collections.abc import Mapping

from torch import Tensor

from distillery.core.roles import SELF
from distillery.losses.signals import Signals
from distillery.tasks.task import Batch, Task

ACCURACY, AGREEMENT = "accuracy", "agreement."
Hits = dict[str, tuple[Tensor | int, Tensor | int]]


def add_hits(totals: Hits, more: Mapping[str, tuple[Tensor | int, Tensor | int]]) -> None:
    """Add the numbers of `more` to those of `totals`, in place."""
    for name, (right, counted) in more.items():
        before = totals.get(name, (0, 0))
        totals[name] = before[0] + right, before[1] + counted


def hits(task: Task, student: Signals, teachers: Mapping[str, Signals], batch: Batch) -> Hits:
    """By `accuracy` and `agreement.<teacher>`: in how many of the rows it is so, and how many count.

    Of a batch without labels both numbers of the accuracy are 0. There is none where labels are soft, as of mixed
    images, no agreement with a teacher of other classes or tokens, and nothing where no class is predicted.

    Args:
        student, teachers: their rows of logits.
        batch: what `Task.rows` says of the rows.
    """
    if task.prediction != "class":
        return {}
    own, target = task.predict(student.logits.detach()), batch["target"]
    found: Hits = {}
    if target.shape == own.shape and not target.is_floating_point():
        # no class is `UNLABELLED`
        found[ACCURACY] = (own == target).sum(), batch["labelled"].sum() if "labelled" in batch else len(target)
    for name, teacher in teachers.items():
        if name != SELF and teacher.tokenizer is None and teacher.logits.shape == student.logits.shape:
            found[f"{AGREEMENT}{name}"] = (own == task.predict(teacher.logits)).sum(), len(own)
    return found
