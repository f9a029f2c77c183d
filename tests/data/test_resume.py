"""A fit with Lightning's own Trainer, killed in mid-epoch and resumed, serves what an unbroken one serves."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.data.vision import VisionData

EPOCHS, BATCHES = 3, 7
Make = Callable[..., VisionData]
Served = list[tuple[int, Tensor, Tensor]]  # epoch, index, image


class Killed(Exception):
    pass


class Recorder(L.LightningModule):
    """A linear model with dropout (it draws from the global generator), which keeps what it was served."""

    def __init__(self, kill: tuple[str, int] | None = None, path: Path | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 32 * 32, 100))
        self.kill = kill
        self.path = path
        self.served: Served = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.served.append((self.current_epoch, batch["index"], batch["image"]))
        return nn.functional.cross_entropy(self.net(batch["image"]), batch["target"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.net(batch["image"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def _save_and_die(self, hook: str) -> None:
        if self.kill == (hook, self.global_step):
            self.trainer.save_checkpoint(self.path)
            raise Killed

    def on_train_batch_end(self, *_: Any) -> None:
        self._save_and_die("train_batch_end")

    def on_validation_end(self) -> None:
        self._save_and_die("validation_end")

    def on_train_epoch_end(self) -> None:
        self._save_and_die("train_epoch_end")


def fit(module: Recorder, data: VisionData, path: Path | None = None, **given: Any) -> None:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        use_distributed_sampler=False,
        enable_model_summary=False,
        **quiet,
        **given,
    )
    torch.manual_seed(0)
    trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True)


@pytest.fixture(autouse=True)
def quiet_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "level", logging.ERROR)


def test_killed_and_resumed(cifar_data: Make, tmp_path: Path) -> None:
    path = tmp_path / "killed.ckpt"
    whole = Recorder()
    fit(whole, cifar_data())
    assert len(whole.served) == EPOCHS * BATCHES
    for hook, step, workers in (
        ("train_batch_end", 10, 0),
        ("train_batch_end", 13, 0),
        ("train_batch_end", 14, 2),
        ("validation_end", 14, 0),
        ("train_epoch_end", 7, 2),
    ):
        first = Recorder((hook, step), path)
        with pytest.raises(Killed):
            fit(first, cifar_data(num_workers=workers))
        second = Recorder()
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*not resumable.*")
            fit(second, cifar_data(num_workers=workers), path)
        assert len(first.served) == step
        served = first.served + second.served
        for (epoch, index, image), (other_epoch, other_index, other_image) in zip(whole.served, served, strict=True):
            assert epoch == other_epoch
            assert torch.equal(index, other_index)
            assert torch.equal(image, other_image)


def test_each_sample_is_served_once_an_epoch(cifar_data: Make) -> None:
    whole = Recorder()
    data = cifar_data()
    fit(whole, data)
    for epoch in range(EPOCHS):
        served = torch.cat([index for number, index, _ in whole.served if number == epoch])
        assert sorted(served.tolist()) == data.splits["train"].indices.tolist()


def test_killed_between_two_validations_of_an_epoch(cifar_data: Make, tmp_path: Path) -> None:
    path = tmp_path / "killed.ckpt"
    whole, second = Recorder(), Recorder()
    fit(whole, cifar_data(), val_check_interval=3)
    first = Recorder(("validation_end", 10), path)
    with pytest.raises(Killed):
        fit(first, cifar_data(), val_check_interval=3)
    fit(second, cifar_data(), path, val_check_interval=3)
    served = [index.tolist() for _, index, _ in first.served + second.served]
    assert served == [index.tolist() for _, index, _ in whole.served]


def test_fit_without_validation_images(cifar_data: Make) -> None:
    module = Recorder()
    fit(module, cifar_data(val_size=0))
    assert len(module.served) == EPOCHS * 8


def test_limited_batches_start_anew_each_epoch(cifar_data: Make) -> None:
    whole, limited = Recorder(), Recorder()
    fit(whole, cifar_data())
    fit(limited, cifar_data(), limit_train_batches=2)
    expected = [entry[1].tolist() for epoch in range(EPOCHS) for entry in whole.served[epoch * BATCHES :][:2]]
    assert [index.tolist() for _, index, _ in limited.served] == expected


def test_a_replaced_sampler_is_refused(cifar_data: Make) -> None:
    with pytest.raises(UserError, match="overfit"):
        fit(Recorder(), cifar_data(), overfit_batches=3)
