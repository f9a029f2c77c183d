"""What TermMonitor logs, and that it stops a broken run while the last checkpoint is still good."""

import csv
import json
import math
import re
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import DictConfig

from distillery.core.errors import UserError
from distillery.runs.run import train
from distillery.training.distiller import Distiller
from fixtures.composing import Compose, with_hint

STEPS = 8  # in an epoch

pytestmark = pytest.mark.filterwarnings("ignore:Teacher 'main' scores")  # it is untrained


@pytest.fixture
def composed(compose_train: Compose, tmp_path: Path) -> Compose:
    return with_hint(compose_train, tmp_path, epochs=3)


class Breaks(L.Callback):
    """Calls `how(module)` before the batch `batch` of the epoch `epoch`, both counted from 0."""

    def __init__(self, how: Callable[[Distiller], None], epoch: int, batch: int) -> None:
        self.how = how
        self.place = epoch, batch

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == self.place:
            assert isinstance(module, Distiller)
            self.how(module)


class BreaksWeights(L.Callback):
    """As a bad update would: the losses of the step are finite, the weights after it are not.

    By default those of the projector: the student's own score does not tell.
    """

    def __init__(self, step: int, how: Callable[[Distiller], None] | None = None) -> None:
        self.step, self.how = step, how or break_projector

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        if trainer.global_step == self.step:
            assert isinstance(module, Distiller)
            self.how(module)


class Records(L.Callback):
    """The terms of every batch, and the step after it."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, float]]] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *args: Any) -> None:
        self.seen.append((trainer.global_step, {name: value.item() for name, value in outputs["terms"].items()}))


def break_student(module: Distiller) -> None:
    module.student.net.head.weight.data.fill_(math.nan)


def break_projector(module: Distiller) -> None:
    module.objective.terms["hint"].projectors[0].weight.data.fill_(math.inf)


def checkpoint_in(message: str) -> dict[str, Any]:
    """The checkpoint that the message calls good, which must be."""
    named = re.search(r"The last good checkpoint is (.*\.ckpt)\.$", message)
    assert named, message
    checkpoint = torch.load(named[1], weights_only=True)
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    return checkpoint


@pytest.mark.parametrize(
    ("how", "broken", "cadence"),
    [(break_projector, {"hint"}, 50), (break_student, {"task", "kd"}, 1)],  # hint ends before the student's head
)
def test_the_error_names_the_terms_that_broke_first(
    how: Callable[[Distiller], None], broken: set[str], cadence: int, composed: Callable[..., DictConfig]
) -> None:
    """All are NaN a step later, whatever broke: that must not hide it, however seldom a line is due."""
    cfg = composed(f"trainer.log_every_n_steps={cadence}")
    with pytest.raises(UserError, match=r"^Training stopped in epoch 2, step \d+: loss\.") as error:
        train(cfg, callbacks=[Breaks(how, epoch=1, batch=4)])
    assert set(re.findall(r"loss\.(\w+) is (?:nan|inf)", str(error.value))) == broken
    assert checkpoint_in(str(error.value))["epoch"] == 0
    record = json.loads((Path(cfg.paths.run) / "run.json").read_text())
    assert record["status"] == "failed"
    assert record["error"] == f"UserError: {error.value}"


def test_the_best_checkpoint_is_named_where_it_is_the_only_one(composed: Callable[..., DictConfig]) -> None:
    cfg = composed("callbacks.checkpoint_last.every_n_epochs=50")
    with pytest.raises(UserError, match=r"checkpoints/best\.ckpt\.$") as error:
        train(cfg, callbacks=[Breaks(break_student, epoch=1, batch=2)])
    assert checkpoint_in(str(error.value))["epoch"] == 0


BY_LOSS = [
    "callbacks.checkpoint_best.monitor=val/loss",
    "callbacks.checkpoint_best.mode=min",
]  # each is the best so far


@pytest.mark.parametrize(
    ("overrides", "names", "every"),
    [
        (BY_LOSS, ["best", "last"], 1),  # Lightning saves the best at the end of the epoch
        (BY_LOSS, ["best", "last"], 2),  # at the end of the validation, which comes before
        (["trainer.limit_val_batches=0", "callbacks.checkpoint_best=null"], ["last"], 1),
    ],
)
def test_broken_weights_are_caught_before_they_are_saved(
    overrides: list[str], names: list[str], every: int, composed: Callable[..., DictConfig]
) -> None:
    cfg = composed(f"trainer.max_epochs={2 * every}", f"trainer.check_val_every_n_epoch={every}", *overrides)

    def epochs() -> list[int]:
        saved = [Path(cfg.paths.run, "checkpoints", f"{name}.ckpt") for name in names]
        return [torch.load(path, weights_only=True)["epoch"] for path in saved]

    train(cfg)
    assert epochs() == [2 * every - 1] * len(names)
    shutil.rmtree(cfg.paths.run)  # a finished run would be kept
    with pytest.raises(UserError, match=r"the weights \S*hint\.projectors\.0\.weight are not finite") as error:
        train(cfg, callbacks=[BreaksWeights(2 * every * STEPS)])
    last = 2 * every - 2  # the one before the epoch that broke them
    assert checkpoint_in(str(error.value))["epoch"] == last
    assert epochs() == [{"best": every - 1, "last": last}[name] for name in names]


def lines(run: str) -> dict[int, dict[str, float]]:
    """step → the terms that were logged there, from the CSV file; each step once."""
    with Path(run, "metrics", "version_0", "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    steps = [int(row["step"]) for row in rows]
    assert len(set(steps)) == len(steps)
    names = [key for key in rows[0] if key.startswith("train/")]
    return {
        step: {key.removeprefix("train/"): float(row[key]) for key in names if row[key]}
        for step, row in zip(steps, rows, strict=True)
    }


def means(seen: list[tuple[int, dict[str, float]]], due: list[int]) -> dict[int, dict[str, float]]:
    """For each step at which a line is due the mean over the batches since the one before."""
    found, begin = {}, 0
    for step in due:
        since = [terms for at, terms in seen if begin < at <= step]
        found[step] = {name: math.fsum(terms[name] for terms in since) / len(since) for name in since[0]}
        begin = step
    return found


def test_weighted_shares_add_up_to_the_loss(composed: Compose) -> None:
    """The weight of kd changes within a line."""
    weight = "loss.kd.weight={schedule: warmup, to: 1, epochs: 1}"
    cfg = composed(weight, "trainer.log_every_n_steps=3", "trainer.max_epochs=1")
    train(cfg)
    found = pd.read_csv(Path(cfg.paths.run, "metrics", "version_0", "metrics.csv")).dropna(subset=["train/loss"])
    shares = found[["weighted/task", "weighted/kd", "weighted/hint"]].sum(axis=1)
    np.testing.assert_allclose(shares, found["train/loss"], rtol=1e-5)
    assert found["weighted/kd"].iloc[0] < 0.9 * found["train/kd"].iloc[0]


class Predicts(L.Callback):
    """What student and teacher predict for each batch, just before its update."""

    def __init__(self) -> None:
        self.right: list[bool] = []
        self.agreed: list[bool] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        assert isinstance(module, Distiller)
        state = deepcopy(module.student.net.state_dict())  # of its batch statistics
        with torch.no_grad():
            own = module.student(batch).logits.argmax(-1)
            theirs = module.teachers["main"](batch).logits.argmax(-1)
        module.student.net.load_state_dict(state)
        labelled = batch.get("labelled", torch.ones_like(own, dtype=torch.bool))
        self.right += (own == batch["target"])[labelled].tolist()
        self.agreed += (own == theirs).tolist()


def test_accuracy_and_agreement_of_an_epoch_are_those_of_its_predictions(composed: Compose) -> None:
    cfg = composed("data.labelled_size=30", "trainer.max_epochs=1")
    watch = Predicts()
    train(cfg, callbacks=[watch])
    found = pd.read_csv(Path(cfg.paths.run, "metrics", "version_0", "metrics.csv"))
    assert len(watch.right) == 30 < len(watch.agreed)
    assert found["train/accuracy"].dropna().tolist() == pytest.approx([np.mean(watch.right)])
    assert found["train/agreement"].dropna().tolist() == pytest.approx([np.mean(watch.agreed)])
    assert found["step"][found["train/accuracy"].notna()].tolist() == [STEPS]


@pytest.mark.parametrize(
    ("cadence", "validated", "due"),
    [
        (1, 1, list(range(1, 25))),
        (3, 2, [3, 6, 8, 9, 12, 15, 16, 18, 21, 24]),
        (8, 2, [8, 16, 24]),
        (50, 1, [8, 16, 24]),
    ],
)
def test_a_line_is_the_mean_since_the_last(
    cadence: int, validated: int, due: list[int], composed: Callable[..., DictConfig]
) -> None:
    cfg = composed(f"trainer.log_every_n_steps={cadence}", f"trainer.check_val_every_n_epoch={validated}")
    records = Records()
    train(cfg, callbacks=[records])
    assert [step for step, _ in records.seen] == list(range(1, 3 * STEPS + 1))
    expected = means(records.seen, due)
    found = lines(cfg.paths.run)
    assert list(found) == due
    assert set(found[due[0]]) == {"loss", "task", "kd", "hint"}
    for step in due:
        assert found[step] == pytest.approx(expected[step], rel=1e-5)


def test_with_accumulated_gradients_a_line_is_due_once_in_so_many_updates(composed: Callable[..., DictConfig]) -> None:
    """Four batches an update: two updates an epoch, each of which several batches see."""
    cfg = composed("trainer.accumulate_grad_batches=4", "trainer.log_every_n_steps=1", "trainer.max_epochs=2")
    records = Records()
    train(cfg, callbacks=[records])
    found = lines(cfg.paths.run)
    assert list(found) == [1, 2, 3, 4]
    for step, batches in zip(found, [(0, 4), (4, 8), (8, 12), (12, 16)], strict=True):
        expected = [terms for _, terms in records.seen[slice(*batches)]]
        assert found[step]["loss"] == pytest.approx(math.fsum(terms["loss"] for terms in expected) / 4, rel=1e-5)


def test_lightning_s_validation_before_training_is_no_obstacle(composed: Callable[..., DictConfig]) -> None:
    result = train(composed("trainer.num_sanity_val_steps=1", "trainer.max_epochs=1"))
    assert result.record.status == "finished"


EVERY_SECOND_STEP = [
    "callbacks.checkpoint_last.every_n_epochs=null",
    "+callbacks.checkpoint_last.every_n_train_steps=2",
]


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        (Breaks(break_projector, epoch=0, batch=4), r"epoch 1, step 6: loss\.hint is (nan|inf)\."),  # and no other term
        (BreaksWeights(6, break_student), r"step 6: the weights student\.net\.head\.weight are not finite after an"),
    ],
)
def test_broken_weights_are_not_saved_between_two_lines(breaks: L.Callback, said: str, composed: Compose) -> None:
    with pytest.raises(UserError, match=said) as error:
        train(composed(*EVERY_SECOND_STEP, "trainer.log_every_n_steps=50"), callbacks=[breaks])
    assert checkpoint_in(str(error.value))["global_step"] == 4


def test_broken_weights_are_not_saved_where_only_weights_are(composed: Compose) -> None:
    """Lightning does not tell callbacks of such a checkpoint; this one it saves as the validation ends."""
    weights = ["+callbacks.checkpoint_best.save_weights_only=true", "callbacks.checkpoint_last=null"]
    cfg = composed(*BY_LOSS, *weights, "trainer.check_val_every_n_epoch=2", "trainer.max_epochs=2")
    with pytest.raises(
        UserError, match=r"the weights \S*projectors\.0\.weight .*No checkpoint had been written yet\.$"
    ):
        train(cfg, callbacks=[BreaksWeights(2 * STEPS)])
    assert list(Path(cfg.paths.run).rglob("*.ckpt")) == []


def test_a_checkpoint_that_was_about_to_be_the_first_is_not_called_good(composed: Compose) -> None:
    cfg = composed(*EVERY_SECOND_STEP, "trainer.log_every_n_steps=50")
    with pytest.raises(UserError, match=r"epoch 1, .*loss\.hint is .*No checkpoint had been written yet\.$"):
        train(cfg, callbacks=[Breaks(break_projector, epoch=0, batch=0)])
    assert list(Path(cfg.paths.run).rglob("*.ckpt")) == []


def test_saving_between_two_lines_leaves_the_lines_as_they_are(composed: Compose) -> None:
    saving = composed("trainer.log_every_n_steps=3", "trainer.max_epochs=2", *EVERY_SECOND_STEP, run="saving")
    plain = composed("trainer.log_every_n_steps=3", "trainer.max_epochs=2", run="plain")
    for cfg in (saving, plain):
        train(cfg)
    found = lines(saving.paths.run)
    assert list(found) == [3, 6, 8, 9, 12, 15, 16]
    assert found == lines(plain.paths.run)


def test_zero_is_a_line_at_each_epochs_end_only(composed: Compose) -> None:
    cfg = composed("trainer.log_every_n_steps=0", "trainer.max_epochs=2")
    train(cfg)
    assert list(lines(cfg.paths.run)) == [8, 16]
