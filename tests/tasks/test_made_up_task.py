"""A new task is one class: it trains, is guarded, scored, recorded and compared with nothing else changed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric

from distillery.core.errors import UserError
from distillery.losses.signals import Signals
from distillery.runs.run import train
from distillery.tasks.task import Batch, Labelled, Task
from fixtures.composing import Compose
from fixtures.runs import STUDENT


class ErrorRate(Metric):
    """Of classes: lower is better."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = MeanMetric()

    def update(self, logits: Tensor, target: Tensor) -> None:
        self.mean.update((logits.argmax(1) != target).float())

    def compute(self) -> Tensor:
        return 100 * self.mean.compute()

    def reset(self) -> None:
        super().reset()
        self.mean.reset()


class Errors(Task):
    """Classes, scored by the percentage of errors; the hard-label loss is a margin."""

    score = "errors"
    higher_is_better = False
    score_range = (0.0, 100.0)
    head = "sequence_classification"
    pipeline_tag = "image-classification"

    def __init__(self, weight: float = 1.0, margin: float = 1.0) -> None:
        self.weight = weight
        self.margin = margin

    def outputs(self, data: Labelled) -> int:
        return len(data.classes)

    def rows(self, signals: Signals, batch: Batch) -> tuple[Signals, Batch]:
        return signals, batch

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.multi_margin_loss(logits.float(), target, margin=self.margin, reduction="none")

    def metric(self, outputs: int | None) -> Metric:
        return ErrorRate()

    def predict(self, logits: Tensor) -> Tensor:
        return logits.argmax(1)


def test_a_new_task_trains_with_nothing_else_changed(compose_train: Compose, teacher: Path) -> None:
    cfg = compose_train(*STUDENT, f"teachers.main.weights='{teacher}'", "trainer.max_epochs=6", "logger=none")
    cfg.task = {"_target_": f"{__name__}.Errors", "weight": 1.0, "margin": 0.5}
    result = train(cfg)
    with np.load(result.folder / "predictions.npz") as saved:
        wrong = {name: 100 * (saved[name] != saved["target"]).mean() for name in ("student", "main")}
    record = result.record
    assert record.metrics["last"]["test_score"] == pytest.approx(wrong["student"])
    assert record.teachers["main"]["score"] == pytest.approx(wrong["main"])
    assert 0 < wrong["student"] < 80
    keys = ("score_name", "higher_is_better", "score_range")
    assert [record.data[key] for key in keys] == ["errors", False, [0.0, 100.0]]
    best = torch.load(result.folder / "checkpoints" / "best.ckpt", weights_only=True)["epoch"]
    assert record.timeline[best]["score"] == min(entry["score"] for entry in record.timeline)
    assert min(entry["score"] for entry in record.timeline) < max(entry["score"] for entry in record.timeline)


def test_a_teacher_with_too_high_a_score_is_refused(compose_train: Compose, teacher: Path) -> None:
    cfg = compose_train("experiment=digits_demo", f"teachers.main.weights='{teacher}'", "logger=none")
    cfg.min_teacher_score = 0.001
    cfg.task = {"_target_": f"{__name__}.Errors"}
    with pytest.raises(UserError, match=r"Teacher 'main' scores \d+\.\d+ .*worse than min_teacher_score=0\.001"):
        train(cfg)
