"""Scores a teacher whose outputs are not the data's classes: by a linear classifier on its embeddings."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.data.module import Data
from distillery.losses.signals import Signals
from distillery.tasks.task import Task
from distillery.teachers.frozen import Teacher

MOST = 10_000  # training samples of a probe
ABSENT = -1e4  # the logit of a class without training samples
STEPS = 1000


class LinearProbe(nn.Module):
    """A teacher with a new classifier, fitted on its embeddings of the training samples, unaugmented.

    It is scikit-learn's `LogisticRegression` on standardised embeddings, and nothing teaches by it. The embedding is
    the input of the teacher's own classifier or, where there is none, its output; of tokens and maps the mean.

    Args:
        teacher: a frozen teacher.
        data: whose training split is fitted; of more than `MOST` samples as many are drawn.
    """

    def __init__(self, teacher: Teacher, data: Data) -> None:
        super().__init__()
        # Few runs fit a probe, and these imports take a tenth of a second.
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        self.teacher = teacher
        features, targets = _embeddings(teacher, data)
        scaler = StandardScaler().fit(features)
        model = LogisticRegression(max_iter=STEPS).fit(scaler.transform(features), targets)
        weight, bias = model.coef_, model.intercept_
        if len(weight) == 1:  # of two classes scikit-learn gives the difference
            weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
        bias = bias - weight @ (scaler.mean_ / scaler.scale_)
        self.samples = len(targets)
        self.weight = torch.zeros(len(data.classes), features.shape[1])
        self.bias = torch.full((len(data.classes),), ABSENT)
        self.weight[model.classes_] = torch.from_numpy(weight / scaler.scale_).float()
        self.bias[model.classes_] = torch.from_numpy(bias).float()

    @property
    def name(self) -> str:
        """How it is called where its score is told."""
        return f"linear probe on {self.samples:,} training samples"

    def forward(self, batch: Mapping[str, Tensor]) -> Signals:
        features = _embedding(self.teacher, batch)
        return Signals(features @ self.weight.to(features.device).T + self.bias.to(features.device))


def probe_of(teacher: Teacher, data: Data, task: Task) -> LinearProbe | None:
    """The probe of a teacher, fitted once for each data set.

    None: it has no embeddings, or the samples do not have one class each.
    """
    if (
        not teacher.has_network
        or task.prediction != "class"
        or task.rows_are != "samples"
        or data.splits["train"].targets.is_floating_point()
    ):
        return None
    if data.fingerprint not in teacher.probes:
        teacher.probes[data.fingerprint] = LinearProbe(teacher, data)
    return teacher.probes[data.fingerprint]


def _embeddings(teacher: Teacher, data: Data) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Of the labelled training samples, with their labels."""
    indices = data.splits["train"].labelled_indices
    drawn = torch.randperm(len(indices), generator=torch.Generator().manual_seed(0))[:MOST]
    data = data.narrowed(indices[drawn.sort().values])
    keys, dataset = data.plain(data.eval_batch_size, augmented=False)
    features, targets = [], []
    for key in keys:
        batch = {name: value.to(teacher.device) for name, value in dataset[key].items()}
        features.append(_embedding(teacher, batch).cpu())
        targets.append(batch["target"].cpu())
    return torch.cat(features).numpy(), torch.cat(targets).numpy()


def _embedding(teacher: Teacher, batch: Mapping[str, Tensor]) -> Tensor:
    """[B, D]."""
    found: list[Tensor] = []
    head: nn.Module | None = None
    with suppress(UserError):  # no linear layer
        head = teacher.net.get_submodule(teacher.head(batch))
    if head is None or isinstance(head, nn.Conv2d):  # it has no classifier of samples
        output = teacher.compute(batch, training=False).logits
        output = output.movedim(-1, 1) if output.dim() == 4 else output
    else:
        hook = head.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
        try:
            teacher.compute(batch, training=False)
        finally:
            hook.remove()
        output = found[-1]
    output = output.float()
    if output.dim() == 4:
        return output.mean((2, 3))
    return output.mean(1) if output.dim() == 3 else output
