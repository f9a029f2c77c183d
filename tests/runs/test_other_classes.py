"""A frozen teacher whose classes are not the data's: `uld` learns from it, and a linear probe scores it."""

import re
from contextvars import Context
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from distillery.core.errors import UserError
from distillery.losses import functional
from distillery.models.cnn import SmallCNN
from distillery.models.weights import save_weights
from distillery.results.layout import PREDICTIONS
from distillery.results.report.write import write_report
from distillery.runs.run import train
from distillery.teachers.frozen import Teacher
from distillery.teachers.linear_probe import _embedding, probe_of
from fixtures.building import build
from fixtures.composing import Compose


@pytest.fixture
def composed(compose_train: Compose, tmp_path: Path) -> Compose:
    """The ten digits, and a teacher of seven classes."""
    torch.manual_seed(0)
    save_weights(SmallCNN(7, 1, (4, 6)), tmp_path / "seven.safetensors")
    given = [
        "model/teacher=cnn",
        "teachers.main.net.widths=[4,6]",
        "+teachers.main.net.num_classes=7",
        f"teachers.main.weights={tmp_path / 'seven.safetensors'}",
        "student.net.widths=[4,4]",
        "data.train_size=100",
        "trainer.max_epochs=1",
    ]

    def compose(*overrides: str, run: str = "run") -> DictConfig:
        return compose_train(*given, *overrides, run=run)

    return compose


def test_a_teacher_of_other_classes_teaches_and_a_probe_is_scored(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = Context().run(train, composed("loss/response=[uld]", "loss/feature=[hint]"))
    said = capsys.readouterr().out
    probe = "linear probe on 100 training samples"
    assert re.search(rf"Teacher 'main': accuracy 0\.\d+ on the validation split \({probe}\)", said)
    teacher = result.record.teachers["main"]
    why = "gives logits (8, 7) where the task has 10 classes or values"
    assert teacher["scored_by"] == f"{probe}, as it {why}"
    data = result.parts.data
    embeddings, labels = {}, {}
    main = result.parts.distiller.teachers["main"]
    train_split = data.splits["train"]
    images = train_split.inputs.batch(train_split.indices, None, 0, 0)  # not augmented
    plain = {"image": images, "target": train_split.targets[train_split.indices]}
    for split, batches in (("train", [plain]), ("test", [*data.test_dataloader()])):
        with torch.no_grad():
            last = nn.Sequential(main.net.stages[0], nn.MaxPool2d(2), main.net.stages[1])
            embeddings[split] = torch.cat([last(*main.adapter(batch)[0]).mean((2, 3)) for batch in batches])
        labels[split] = torch.cat([batch["target"] for batch in batches])
    reference = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    reference.fit(embeddings["train"], labels["train"])
    assert teacher["score"] == pytest.approx(reference.score(embeddings["test"], labels["test"]), abs=0.005)
    assert "main" not in np.load(result.folder / PREDICTIONS)
    frame = write_report([result.folder], tmp_path / "report", "").table
    assert [*frame["method"]] == ["teacher", "uld+hint"]
    assert f"- `main` is scored by {probe}, as it {why}." in (tmp_path / "report" / "report.md").read_text()


def test_its_loss_is_that_of_all_its_classes(composed: Compose) -> None:
    parts = build(composed("loss/response=[uld]", "loss.uld.weight=2", "task.weight=0"))
    distiller, batch = parts.distiller, parts.example
    distiller.student.eval()
    ours, theirs = distiller.student(batch), distiller.teachers["main"](batch)
    assert theirs.logits.shape == (len(batch["target"]), 7)
    total = distiller.objective(ours, {"main": theirs}, batch).total
    torch.testing.assert_close(total, 2 * functional.uld(ours.logits, theirs.logits))


@pytest.mark.parametrize("losses", ["[kd]", "[uld,kd]", "[]"])
def test_other_losses_need_the_same_classes(losses: str, composed: Compose) -> None:
    with pytest.raises(UserError, match=r"main network gives logits \(8, 7\) where .*10 classes.*=\[uld\]"):
        build(composed(f"loss/response={losses}"))


def test_teachers_that_are_weighted_by_the_label_need_them_too(composed: Compose) -> None:
    two = ["+model/teacher@teachers.b=cnn", "teachers.b.weights=${teachers.main.weights}"]
    two += ["teachers.b.net.widths=[4,6]", "+teachers.b.net.num_classes=7", "loss/response=[uld]"]
    build(composed(*two, "loss.uld.teacher=[main,b]"))
    with pytest.raises(UserError, match=r"main network gives logits \(8, 7\)"):
        build(composed(*two, "loss.uld.teacher=[main,b]", "+loss.uld.combine=best"))


def test_a_probe_learns_from_labelled_samples_alone(composed: Compose) -> None:
    parts = build(composed("loss/response=[uld]", "data.labelled_size=40"))
    assert parts.data.sizes["train"] == 100
    probe = probe_of(parts.distiller.frozen["main"], parts.data, parts.distiller.task)
    assert probe is not None
    assert probe.samples == 40


def test_the_embedding_of_a_teacher_that_gives_maps_is_their_mean() -> None:
    """A backbone without a classifier: its output, and not the input of its last convolution."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2)).eval()
    images = torch.rand(3, 1, 9, 11)
    found = _embedding(Teacher(net), {"image": images})
    with torch.no_grad():
        torch.testing.assert_close(found, net(images).mean((2, 3)))
