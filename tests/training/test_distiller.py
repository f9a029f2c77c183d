"""The module in a real fit: what it logs of a validation, and several teachers beside each other."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score
from torch import Tensor

from distillery.models.cnn import SmallCNN
from distillery.models.weights import save_weights, weights_hash
from distillery.runs.run import train
from fixtures.composing import Compose

SMALL = [
    "student.net.widths=[4,4]",
    "data.train_size=100",
    "data.batch_size=25",
    "trainer.max_epochs=2",
    "logger=none",
]


class Validated(L.Callback):
    """What was logged of each validation, and the student's logits on the whole split at once."""

    def __init__(self) -> None:
        self.logged: list[tuple[float, float]] = []
        self.logits: list[tuple[np.ndarray, np.ndarray]] = []

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        found = trainer.callback_metrics
        self.logged.append((found["val/score"].item(), found["val/loss"].item()))
        batches = list(trainer.datamodule.val_dataloader())
        assert len({len(batch["target"]) for batch in batches}) == 2, "of equal batches every mean is right"
        whole = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
        logits = module.student(whole).logits  # Lightning has it in evaluation mode here
        self.logits.append((logits.double().numpy(), whole["target"].numpy()))


def test_a_validation_is_logged_as_scikit_learn_and_numpy_have_it(compose_train: Compose) -> None:
    watch = Validated()
    train(compose_train(*SMALL, "model/teacher=none", "data.eval_batch_size=150"), callbacks=[watch])
    assert len(watch.logged) == 2
    for (score, loss), (logits, target) in zip(watch.logged, watch.logits, strict=True):
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        assert score == pytest.approx(accuracy_score(target, logits.argmax(1)), abs=1e-6)
        assert loss == pytest.approx(-log_p[np.arange(len(target)), target].mean(), rel=1e-5)


class Terms(L.Callback):
    """The first step's terms, and what went into them."""

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, index: int) -> None:
        if trainer.global_step == 0:
            self.image = batch["image"]

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if trainer.global_step == 1:
            self.terms = {name: value.item() for name, value in outputs["terms"].items()}


def kl(student: Tensor, teacher: Tensor, temperature: float) -> float:
    ours, theirs = ((logits / temperature).double().log_softmax(1) for logits in (student, teacher))
    return float((theirs.exp() * (theirs - ours)).sum(1).mean()) * temperature**2


@pytest.mark.filterwarnings("ignore:Teacher '(main|second)' scores")
def test_two_teachers_teach_each_by_its_own_loss(compose_train: Compose, tmp_path: Path) -> None:
    """Each sees the images in its own statistics, is recorded by its name, and neither changes or is saved."""
    statistics = {"main": (0.3, 0.4), "second": (0.6, 0.1)}
    given = list(SMALL)
    for seed, (name, (mean, std)) in enumerate(statistics.items()):
        torch.manual_seed(seed)
        save_weights(SmallCNN(10, 1, (4, 6)), tmp_path / f"{name}.safetensors")
        given += [
            "model/teacher=cnn" if name == "main" else f"+model/teacher@teachers.{name}=cnn",
            f"teachers.{name}.net.widths=[4,6]",
            f"teachers.{name}.weights={tmp_path / name}.safetensors",
            f"teachers.{name}.input={{mean: [{mean}], std: [{std}], size: null}}",
        ]
    given += ["+loss/response@loss.kd_b=kd", "loss.kd_b.teacher=second", "loss.kd_b.temperature=2"]
    given += ["optim.optimizer.lr=0", "data.augment=null"]
    watch = Terms()
    result = train(compose_train(*given), callbacks=[watch])

    def teacher(name: str) -> SmallCNN:
        net = SmallCNN(10, 1, (4, 6))
        net.load_state_dict(load_file(tmp_path / f"{name}.safetensors"))
        return net.eval()

    with torch.no_grad():
        net = result.parts.distiller.student.train()
        ours = net({"image": watch.image}).logits  # at a learning rate of 0 still the first step's student
        logits = {name: teacher(name)((watch.image - mean) / std) for name, (mean, std) in statistics.items()}
        wrong = kl(ours, teacher("second")((watch.image - 0.3) / 0.4), 2)
    expected = {"kd": kl(ours, logits["main"], 4), "kd_b": kl(ours, logits["second"], 2)}
    assert {name: watch.terms[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert abs(expected["kd_b"] - wrong) > 1e-3 * wrong, "the statistics make a difference"

    assert result.record.method == "kd+kd_b"
    hashes = {name: weights_hash(teacher(name)) for name in statistics}
    assert {name: entry["sha256"] for name, entry in result.record.teachers.items()} == hashes
    with np.load(result.folder / "predictions.npz") as saved:
        own = {"student", "main", "second"}
        assert set(saved) == {"index", "target", *own, *(f"{name}_probabilities" for name in own)}
        assert (saved["main"] != saved["second"]).any()
    checkpoint = torch.load(result.folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["state_dict"].keys() == {f"student.net.{key}" for key in net.net.state_dict()}
