"""Schedulers that watch a metric, and those that end: they work, or are refused before the first step."""

import math
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from omegaconf import DictConfig
from torch.optim.lr_scheduler import ReduceLROnPlateau

from distillery.core.errors import UserError
from distillery.runs.run import train
from fixtures.building import build
from fixtures.composing import Compose

NAME = "torch.optim.lr_scheduler."
SMALL = ("model/teacher=none", "student.net.widths=[4,4]", "data.train_size=100", "trainer.max_epochs=4")


@pytest.fixture
def composed(compose_train: Compose) -> Callable[..., DictConfig]:
    return lambda scheduler, *more: compose_train(
        *SMALL, "~optim.scheduler", f"+optim.scheduler={{_target_: {NAME}{scheduler}, _partial_: true}}", *more
    )


class Rates(L.Callback):
    """The metric after each validation, and the learning rate of each epoch."""

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.values: list[float | None] = []
        self.rates: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.values.append(None)
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.values[-1] = float(trainer.callback_metrics[self.metric])


def by_hand(values: list[float | None], rate: float, **settings: Any) -> list[float]:
    """The rate of each epoch of a scheduler that is given the metric wherever there is one."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=rate)
    scheduler = ReduceLROnPlateau(optimizer, **settings)
    rates = []
    for value in values:
        rates.append(optimizer.param_groups[0]["lr"])
        if value is not None:
            scheduler.step(value)
    return rates


@pytest.mark.parametrize(
    ("mode", "monitor", "every"), [("max", "val/score", 1), ("min", "val/loss", 2), ("min", "loss", 1)]
)
def test_a_scheduler_watches_its_metric(mode: str, monitor: str, every: int, composed: Any) -> None:
    """By default the score, or with mode=min the loss, of the validation; only after epochs that have one."""
    named = [f"optim.monitor={monitor}"] if monitor == "loss" else []
    settings = {"mode": mode, "patience": 0, "threshold": 10.0, "factor": 0.5}  # no value is better by so much
    own = [f"+optim.scheduler.{key}={value}" for key, value in settings.items()]
    rates = Rates(monitor)
    cfg = composed("ReduceLROnPlateau", *own, *named, f"trainer.check_val_every_n_epoch={every}")
    result = train(cfg, callbacks=[rates])
    assert result.parts.cfg.optim.monitor == monitor
    assert rates.rates == by_hand(rates.values, 0.05, **settings)
    assert rates.rates[-1] < 0.05


class EachRate(L.Callback):
    """The learning rate of each update, of each group."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        self.rates.append([group["lr"] for group in optimizer.param_groups])


def cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * share))


LR = 0.05
WARM = [0.0] + [LR * cosine(t / 7) for t in range(7)]  # 8 updates, of which a tenth rises: 1
FLOOR = [0.01] + [0.02 + (LR - 0.02) * cosine(t / 7) for t in range(7)]
BY_EPOCH = [0.0, 0.0, *[LR * cosine(t / 3) for t in (0, 0, 1, 1, 2, 2)]]
TWO_STAGES = [0.0, *[LR * cosine(t / 3) for t in range(3)]] * 2
SCHEDULES = {
    ("optim/scheduler=cosine_warmup",): WARM,
    ("optim/scheduler=cosine_warmup", "+stages={a: {epochs: 2, loss: {}}, b: {epochs: 2}}"): TWO_STAGES,
    ("optim/scheduler=wsd",): [0.0, *[LR] * 6, LR * cosine(1 / 2)],
    ("optim/scheduler=timm_cosine",): WARM,
    ("optim/scheduler=timm_cosine", "optim.scheduler.lr_min=0.02", "optim.scheduler.warmup_lr_init=0.01"): FLOOR,
    ("optim/scheduler=timm_cosine", "optim.interval=epoch"): BY_EPOCH,
    ("optim/scheduler=timm_cosine", "+stages={a: {epochs: 2, loss: {}}, b: {epochs: 2}}"): TWO_STAGES,
    ("optim/scheduler=timm_cosine", "trainer.accumulate_grad_batches=2"): [
        0.0,
        *[LR * cosine(t / 3) for t in range(3)],
    ],
    ("optim/scheduler=constant",): [LR] * 8,
}


@pytest.mark.parametrize(("overrides", "expected"), SCHEDULES.items())
def test_each_update_has_the_rate_of_the_formula(
    overrides: tuple[str, ...], expected: list[float], compose_train: Compose
) -> None:
    rates = EachRate()
    own = [*SMALL, *overrides, "optim.lr_scale.head=3"]
    train(compose_train(*own), own, callbacks=[rates])
    least = 3 if "optim.scheduler.lr_min=0.02" not in overrides else None  # an absolute floor has no factor
    assert [first for first, *_ in rates.rates] == pytest.approx(expected, abs=1e-12)
    assert least is None or [last for *_, last in rates.rates] == pytest.approx([3 * rate for rate in expected])


def test_a_scheduler_watches_what_students_are_chosen_by_if_its_mode_suits(composed: Any) -> None:
    chosen = ["task.metrics=[macro_f1]", "task.monitor=val/macro_f1"]
    for mode, monitor in (("max", "val/macro_f1"), ("min", "val/loss")):
        cfg = composed(
            "ReduceLROnPlateau", f"+optim.scheduler.mode={mode}", *chosen, "trainer.check_val_every_n_epoch=2"
        )
        parts = build(cfg)
        assert (parts.cfg.optim.monitor, parts.distiller.optim.frequency) == (monitor, 2)


REFUSED = [
    (
        "OneCycleLR",
        ["+optim.scheduler.max_lr=0.01", "+optim.scheduler.total_steps=5", "optim.interval=step"],
        r"^optim\.scheduler\.total_steps: OneCycleLR ends after 5 steps, but the run is 8 steps long",
    ),
    (
        "OneCycleLR",
        ["+optim.scheduler.max_lr=0.01", "+optim.scheduler.total_steps=3"],
        r"OneCycleLR ends after 3 steps, but the run is 4 epochs long",
    ),
    ("ReduceLROnPlateau", ["optim.interval=step"], r"^optim\.interval=step: ReduceLROnPlateau watches a metric"),
    ("ReduceLROnPlateau", ["optim.monitor=val/scor"], r"^optim\.monitor=val/scor: nothing logs.*'val/score'"),
    ("ReduceLROnPlateau", ["optim.monitor=step"], r"^optim\.monitor=step: nothing logs such a metric"),
    ("ReduceLROnPlateau", ["+optim.scheduler.mode=maxi"], r"^optim\.scheduler\.mode=maxi\. Did you mean 'max'"),
    ("ConstantLR", ["optim.monitor=val/score"], r"^optim\.monitor=val/score: the scheduler watches no metric"),
]


NONSENSE = [
    (
        "cosine_warmup",
        ["num_warmup_steps=8"],
        r"^optim\.scheduler\.num_warmup_steps=8: the warm-up is not shorter than the run, .* 8 s",
    ),
    (
        "cosine_warmup",
        ["num_warmup_steps=1.5"],
        r"^optim\.scheduler\.num_warmup_steps=1\.5: it must be a whole number .* or a",
    ),
    (
        "cosine_warmup",
        ["num_training_steps=5"],
        r"^optim\.scheduler\.num_training_steps: get_cosine.* 5 steps, but .* 8 steps",
    ),
    ("timm_cosine", ["warmup_t=9"], r"^optim\.scheduler\.warmup_t=9: the warm-up is not shorter than the run"),
    ("timm_cosine", ["lr_min=-1"], r"^optim\.scheduler: these settings are refused: assert lr_min >= 0"),
    (
        "timm_cosine",
        ["t_in_epochs=true"],
        r"^optim\.scheduler\.t_in_epochs=true: with optim\.interval=step leave it out",
    ),
    ("timm_cosine", ["_target_=timm.scheduler.PlateauLRScheduler"], r"gives a PlateauLRScheduler, which cannot be"),
    ("timm_cosine", ["_target_=timm.scheduler.create_scheduler_v2"], r"gives a tuple, which cannot be"),
]


@pytest.mark.parametrize(("scheduler", "settings", "message"), NONSENSE)
def test_a_schedule_that_makes_no_sense_is_refused(
    scheduler: str, settings: list[str], message: str, compose_train: Compose
) -> None:
    own = [*SMALL, f"optim/scheduler={scheduler}", *(f"++optim.scheduler.{setting}" for setting in settings)]
    with pytest.raises(UserError, match=message):
        train(compose_train(*own), own)


@pytest.mark.parametrize(("scheduler", "overrides", "message"), REFUSED)
def test_what_would_fail_in_training_is_refused(
    scheduler: str, overrides: list[str], message: str, composed: Any
) -> None:
    cfg = composed(scheduler, *overrides)
    with pytest.raises(UserError, match=message):
        train(cfg)


def test_a_scheduler_may_be_as_long_as_the_run(composed: Any) -> None:
    given = ["+optim.scheduler.max_lr=0.01", "+optim.scheduler.total_steps=8", "optim.interval=step"]
    assert train(composed("OneCycleLR", *given)).record.status == "finished"


def test_a_share_that_leaves_no_batch_is_refused(composed: Any) -> None:
    for setting in ("train", "val"):
        with pytest.raises(UserError, match=rf"^trainer\.limit_{setting}_batches=0\.001 leaves none of the [12] batch"):
            build(composed("ConstantLR", f"trainer.limit_{setting}_batches=0.001"))
