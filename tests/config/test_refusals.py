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
        (
            ["student.net.widths=[0]"],
            "student.net.widths=[0]: the network needs positive widths, one per stage, such as [16, 32].",
        ),
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


def test_every_refusal_of_a_network_names_the_setting(compose_train: Compose) -> None:
    timm, vision, cifar = (f"model/student={name}" for name in ("timm", "hf_vision", "cifar"))
    for overrides, message in (
        (["student.net.widths=[]"], r"student\.net\.widths=\[\]: the network needs positive widths"),
        (["student.net.norm=layer"], r"student\.net\.norm=layer\. Choose from: batch"),
        (["student.net.widths=[2,2,2,2,2]"], r".*\(8, 1, 8, 8\)(.|\n)*reads images of 16x16: student\.input\.size=16"),
        (["+student.net.num_classes=5"], r".*gives logits \(8, 5\) .* set student\.net\.num_classes"),
        ([cifar, "student.net.name=resnet21"], r"student\.net\.name=resnet21: .*'resnet20'"),
        ([cifar, "student.weights=pretrained"], r"student\.weights=pretrained: .*cifar\.create has no pretrained"),
        ([timm, "student.net.model_name=resnet8"], r"student\.net\.model_name=resnet8: timm has no network"),
        ([timm, "student.net.model_name=null"], r"student\.net\.model_name=null: it must be text"),
        ([timm, "student.net.model_name=test_vit"], r"(.|\n)*reads images of 16x16: student\.input\.size=16"),
        ([vision, "student.net.model=bert"], r"student\.net: 'bert' is a 'bert', which reads no images"),
        (
            [vision, "student.net.model=vit", "+student.net.config.hidden=8"],
            r"student\.net\.config\.hidden=8: 'vit' has no such setting\. Did you mean .*'hidden_size'",
        ),
        (
            [vision, "student.net.model=clip", "+student.net.config.vision_config.hidden=8"],
            r"student\.net\.config\.vision_config\.hidden=8: .*'hidden_size'",
        ),
        (
            [vision, "student.net.model=vit", "+student.net.config.num_attention_heads=0"],
            r"student\.net\.config\.num_attention_heads=0: it must be at least 1",
        ),
    ):
        with pytest.raises(UserError, match=f"^{message}"):
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
