"""Teachers that are no networks here: their logits were stored, or are asked of something else."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from distillery.data.module import Data, Stage
from distillery.data.stored_targets import NAMES
from distillery.losses.levels import Available
from distillery.losses.signals import Signals
from distillery.models.adapters import Adapter
from distillery.tasks.task import Task
from distillery.teachers.frozen import SignalSource, Teacher

NO_COST = dict.fromkeys(("params", "embedding_params", "flops", "latency_ms", "latency"))


class NoNetwork(nn.Module):
    """Takes the place of a teacher's network: gives those of the logits that belong to the data's classes."""

    classes: Tensor

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.register_buffer("classes", torch.arange(outputs))
        self.head = nn.Identity()  # its output is the tap `head`

    def forward(self, logits: Tensor) -> Tensor:
        return self.head(logits[..., self.classes])


class FromSource(Adapter):
    """Hands the logits of a source to a `NoNetwork`."""

    def __init__(self, signals: SignalSource) -> None:
        super().__init__()
        self.signals = signals

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[tuple[Tensor], dict[str, Any]]:
        return (self.signals.signals(batch).logits,), {}

    def mask(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        return batch.get("attention_mask")


class TeacherWithoutNetwork(Teacher):
    """A teacher of which only the logits are known, also as the tap `head`. It has no other layers, and no costs.

    Args:
        signals: gives its logits for every batch.
        outputs: the number of logits in a row.
        name, source: see `Teacher`.
        sha256: identifies what it gives.
    """

    has_network = False
    cost = NO_COST

    def __init__(
        self, signals: SignalSource, outputs: int, name: str = "teacher", source: str = "", sha256: str = ""
    ) -> None:
        super().__init__(NoNetwork(outputs), FromSource(signals), name, source)
        self.sha256 = sha256

    @property
    def available(self) -> Available:
        assert isinstance(self.adapter, FromSource)
        return self.adapter.signals.available

    def fingerprint(self) -> str:
        return self.sha256

    def head(self, batch: Mapping[str, Tensor]) -> str:
        return "head"

    def choose_classes(self, index: Sequence[int], batch: Mapping[str, Tensor]) -> None:
        assert isinstance(self.net, NoNetwork)
        self.net.classes = self.net.classes[torch.tensor(index)]
        self._shapes.clear()


@dataclass(frozen=True)
class InBatch(SignalSource):
    """A `SignalSource` of logits that come with each batch, by this name."""

    name: str
    available: ClassVar[Available] = Available()

    def signals(self, batch: Mapping[str, Tensor]) -> Signals:
        """See `SignalSource`."""
        return Signals(batch[self.name])


class StoredTeacher(TeacherWithoutNetwork):
    """A teacher whose outputs for the samples were stored before the run.

    Args:
        name: see `Network`; `data.targets` has its outputs by this name.
        data: whose batches hold them.
    """

    def __init__(self, name: str, data: Data) -> None:
        targets = data.targets[name]
        outputs = targets.logits["train"].shape[1]
        super().__init__(InBatch(f"stored/{name}"), outputs, name, targets.source, targets.sha256)
        self.class_names = targets.classes
        self.remarks += targets.remarks

    def batches(self, data: Data, stage: Stage) -> Iterable[Mapping[str, Tensor]] | str:
        """See `Teacher`: the batches without inputs, which take time to make."""
        if stage == "train" and not data.labelled:
            return "no training sample has a label"
        if not data.sizes[stage] or f"stored/{self.name}" not in data.splits[stage].extra:
            return f"some {NAMES[stage]} samples have no stored target"
        return data.without_inputs(stage)


def training_score(teacher: Teacher, data: Data, task: Task, outputs: int | None) -> list[str]:
    """For the user: the teacher's score on the training samples that have a label."""
    found = teacher.evaluation(data, "train", task, outputs)
    if isinstance(found, str):
        return []
    return [f"{task.score} {found.score:.4f} on the {len(found.target):,} labelled training samples"]
