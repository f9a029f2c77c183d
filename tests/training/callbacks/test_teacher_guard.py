"""A checkpoint that is written in the middle of an epoch is guarded as one at its end."""

import csv
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from omegaconf import DictConfig

from distillery.core.errors import UserError
from distillery.runs.run import train
from fixtures.composing import Compose, with_hint

pytestmark = pytest.mark.filterwarnings("ignore:Teacher 'main' scores")  # it is untrained

EVERY_SECOND_STEP = [
    "callbacks.checkpoint_last.every_n_epochs=null",
    "+callbacks.checkpoint_last.every_n_train_steps=2",
]


@pytest.fixture
def composed(compose_train: Compose, tmp_path: Path) -> Compose:
    return with_hint(compose_train, tmp_path, epochs=2)


class BreaksTerm(L.Callback):
    """The hint becomes infinite in the step after `step` steps, and every weight NaN by its gradient."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            module.objective.terms["hint"].projectors[0].weight.data.fill_(math.inf)


class BreaksWeights(L.Callback):
    """The losses of that step are finite, the weights after it are not."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        if trainer.global_step == self.step:
            module.student.net.head.bias.data[0] = math.nan


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        (BreaksTerm(4), r"epoch 1, step 6: loss\.hint is (nan|inf)\."),  # and no other term
        (BreaksWeights(6), r"epoch 1, step 6: the weights student\.net\.head\.bias are not finite after an update"),
    ],
)
def test_broken_weights_are_not_saved_between_two_lines(
    breaks: L.Callback, said: str, composed: Callable[..., DictConfig]
) -> None:
    cfg = composed(*EVERY_SECOND_STEP, "trainer.log_every_n_steps=50")
    with pytest.raises(UserError, match=said) as error:
        train(cfg, callbacks=[breaks])
    named = re.search(r"The last good checkpoint is (.*\.ckpt)\.$", str(error.value))
    assert named, error.value
    checkpoint = torch.load(named[1], weights_only=True)
    assert checkpoint["global_step"] == 4
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def test_broken_weights_are_not_saved_where_only_weights_are(composed: Callable[..., DictConfig]) -> None:
    """Lightning does not tell callbacks of such a checkpoint; this one it saves as the validation ends."""
    by_loss = ["callbacks.checkpoint_best.monitor=val/loss", "callbacks.checkpoint_best.mode=min"]
    weights = ["+callbacks.checkpoint_best.save_weights_only=true", "callbacks.checkpoint_last=null"]
    cfg = composed(*by_loss, *weights, "trainer.check_val_every_n_epoch=2")

    class BreaksProjector(BreaksWeights):
        def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
            if trainer.global_step == self.step:
                module.objective.terms["hint"].projectors[0].weight.data.fill_(math.nan)

    with pytest.raises(
        UserError, match=r"the weights \S*projectors\.0\.weight .*No checkpoint had been written yet\.$"
    ):
        train(cfg, callbacks=[BreaksProjector(16)])
    assert list(Path(cfg.paths.run).rglob("*.ckpt")) == []


def test_a_checkpoint_that_was_about_to_be_the_first_is_not_called_good(composed: Callable[..., DictConfig]) -> None:
    cfg = composed(*EVERY_SECOND_STEP, "trainer.log_every_n_steps=50")
    with pytest.raises(UserError, match=r"loss\.hint is .*No checkpoint had been written yet\.$"):
        train(cfg, callbacks=[BreaksTerm(0)])
    assert list(Path(cfg.paths.run).rglob("*.ckpt")) == []


def test_saving_between_two_lines_leaves_the_lines_as_they_are(composed: Callable[..., DictConfig]) -> None:
    def lines(cfg: DictConfig) -> list[tuple[str, str]]:
        train(cfg)
        with Path(cfg.paths.run, "metrics", "version_0", "metrics.csv").open() as file:
            return [(row["step"], row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]

    found = lines(composed("trainer.log_every_n_steps=3", *EVERY_SECOND_STEP, run="saving"))
    assert [step for step, _ in found] == ["3", "6", "8", "9", "12", "15", "16"]
    assert found == lines(composed("trainer.log_every_n_steps=3", run="plain"))


def test_zero_is_a_line_at_each_epochs_end_only(composed: Callable[..., DictConfig]) -> None:
    cfg = composed("trainer.log_every_n_steps=0")
    train(cfg)
    with Path(cfg.paths.run, "metrics", "version_0", "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file) if row["train/loss"]] == ["8", "16"]
