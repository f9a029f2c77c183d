"""What a config is refused for once its networks and objects are made."""

import re
from pathlib import Path

import pytest
import torch

from distillery.config.check import check
from distillery.config.instantiate import make
from distillery.core.errors import UserError
from distillery.models.cnn import SmallCNN
from fixtures.building import build
from fixtures.composing import Compose, with_value

BASELINE = ("model/teacher=none", "task.weight=1")


def test_networks(compose_train: Compose, tmp_path: Path) -> None:
    torch.save(SmallCNN(10, 1).state_dict(), tmp_path / "a.pth")
    for overrides, message in (
        (["student.net=null"], "The student network is taken from a run folder: set student.weights to one."),
        (["model/student=bilstm"], "The student network reads texts, but the data set 'digits' has images."),
        (["student.net.widths=[0]"], "SmallCNN needs positive widths, one per stage, as [16, 32]; got [0]."),
        (
            ["model/student=timm", "student.net.model_name=resnet10t", "+student.net.layers=3"],
            "student.net: timm.create_model cannot be made with these settings",
        ),
        (
            [f"student.weights='{tmp_path / 'a.pth'}'", "+student.initialise={source: b, layers: even}"],
            "student.weights and student.initialise both set the student's weights",
        ),
        (["student.net=null", "student.weights=no.safetensors"], "student.weights: there is no file no.safetensors"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            build(compose_train(*BASELINE, *overrides))


def test_objects(compose_train: Compose) -> None:
    stop = "{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/score, mode: up}"
    for key, value, message in (
        ("callbacks.more", 3, "callbacks.more=3: it must be a mapping with a _target_, or null to leave it out."),
        ("data", {"root": "x"}, "data has no _target_. Choose an option with data=…"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            check(with_value(compose_train(*BASELINE), key, value))
    cfg = compose_train(*BASELINE, f"+callbacks.stop={stop}")
    with pytest.raises(UserError, match=r"callbacks\.stop: lightning.*EarlyStopping refuses these settings: .*`mode`"):
        make("callbacks.stop", cfg.callbacks.stop)


def test_a_setting_of_a_loss_that_is_not_chosen(compose_train: Compose) -> None:
    cfg = compose_train("experiment=digits_demo")
    with pytest.raises(UserError, match=r"loss\.hint\.weight=2: the loss 'hint' is not chosen.*loss/feature=\[hint\]"):
        check(cfg, ["loss.hint.weight=2"])
