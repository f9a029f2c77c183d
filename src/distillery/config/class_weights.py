"""The weights of the classes in the task loss, where they follow from the training samples."""

from collections.abc import Iterable, Mapping

import torch
from omegaconf import DictConfig
from torch import Tensor

from distillery.core.errors import UserError
from distillery.data.module import Data
from distillery.tasks.classification import BALANCED, Classification, balanced_weights
from distillery.tasks.task import Task, row_labels

SETTING = "class_weights"


def complete_class_weights(cfg: DictConfig, task: Task, data: Data) -> None:
    """Give the task the weights that `task.class_weights` asks for, and write them into its config.

    Raises:
        UserError: there is not one weight for each class.
    """
    if not isinstance(task, Classification) or (given := task.class_weights) is None:
        return
    if given == BALANCED:
        task.class_weights = balanced_weights(class_counts(data, task))
        cfg.class_weights = list(task.class_weights)
    elif len(given) != len(data.classes):
        raise UserError(
            f"task.class_weights has {len(given)} numbers, but '{data.name}' has {len(data.classes)} classes: one for "
            f"each, in this order: {', '.join(data.classes)}. Or set balanced."
        )


def class_counts(data: Data, task: Task) -> Tensor:
    """How many labelled rows each class has in the training split, int64 [C]: samples, or tokens or pixels."""
    counts = torch.zeros(len(data.classes), dtype=torch.int64)
    for batch in _batches(data, task):
        labels = row_labels(task, batch)
        target = labels["target"][labels["labelled"]] if "labelled" in labels else labels["target"]
        counts += target.bincount(minlength=len(counts))
    return counts


def _batches(data: Data, task: Task) -> Iterable[Mapping[str, Tensor]]:
    if task.rows_are == "samples":
        return data.without_inputs("train")
    keys, dataset = data.plain(data.eval_batch_size, augmented=False)
    return map(dataset.__getitem__, keys)
