"""What a teacher predicts of validation and test samples, in the place of labels that these do not have."""

from collections.abc import Iterable

import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.data.module import Data, Stage
from distillery.data.sampler import SeededBatchSampler
from distillery.tasks.task import Task
from distillery.teachers.frozen import Teacher

SCORED: tuple[Stage, ...] = ("val", "test")


def with_references(data: Data, task: Task, teachers: Iterable[Teacher]) -> Data:
    """The data whose validation and test samples have as their `target` what the first teacher predicts of them.

    It is computed once for each data set, on the teacher's device, which is the CPU before training.

    Raises:
        UserError: none of the teachers is a network.
    """
    teacher = next((each for each in teachers if each.has_network), None)
    if teacher is None:
        raise UserError(
            f"task={type(task).__name__.lower()}: the samples of '{data.name}' have no classes, so the score compares "
            "the student with its teacher, but no teacher here can be asked. Choose a teacher that is a "
            "network (model/teacher=run, transformer, …), or data with classes."
        )
    if data.fingerprint not in teacher.references:
        teacher.references[data.fingerprint] = {stage: _predicted(data, stage, task, teacher) for stage in SCORED}
    return data.with_references(teacher.references[data.fingerprint])


def _predicted(data: Data, stage: Stage, task: Task, teacher: Teacher) -> Tensor:
    """[N, …] by position; NaN at samples of other splits."""
    split, dataset = data.splits[stage], data.dataset(stage)
    found: Tensor | None = None
    for key in SeededBatchSampler(split.indices, data.eval_batch_size, **data.order(stage)):
        batch = {name: value.to(teacher.device) for name, value in dataset[key].items()}
        predicted = task.predict(teacher.compute(batch, training=False).logits).cpu()
        if found is None:
            found = predicted.new_full((len(split.targets), *predicted.shape[1:]), torch.nan)
        found[batch["index"].cpu()] = predicted
    return torch.empty(len(split.targets), 0) if found is None else found
