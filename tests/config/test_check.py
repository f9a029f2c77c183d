"""What is refused before anything is built, what is not, and what a run is called."""

import re
from itertools import product
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.connector import _PRECISION_INPUT
from lightning.pytorch.utilities import GradClipAlgorithmType
from omegaconf import open_dict
from torch import nn

from distillery.config.check import check
from distillery.config.names import losses_of, method_name, teachers_of
from distillery.core.errors import UserError
from fixtures.building import build
from fixtures.cases import each_case
from fixtures.composing import Compose, with_value

TAUGHT = "teachers.main.weights=teacher.safetensors"


@each_case("name", ["student", "index", "target"])
def test_a_teacher_is_not_called_as_another_array_of_the_predictions(name: str, compose_train: Compose) -> None:
    """It would replace that array: a teacher `student` makes an agreement of 1."""
    second = [f"+model/teacher@teachers.{name}=cnn", f"teachers.{name}.weights=b.pth"]
    with pytest.raises(UserError, match=rf"^teachers\.{name}: a teacher cannot have this name.*predictions\.npz"):
        check(compose_train(TAUGHT, *second))


VALUES: list[tuple[str, Any, str]] = [
    ("student.input", None, r"^student\.input=null: it must be a mapping with mean, std, size"),
    ("student.input.mean", 0.5, r"^student\.input\.mean=0\.5: it must be a list of finite numbers, one per channel"),
    ("teachers.main.input.std", "0.5", r"^teachers\.main\.input\.std=0\.5: it must be a list"),
    ("teachers.main.input.size", 1.5, r"^teachers\.main\.input\.size=1\.5: it must be a side length in whole pixels"),
    ("seed", 2**32, r"^seed=4294967296: it must be a whole number of at least 0 and of at most 4294967295\.$"),
    ("seed", -1, r"^seed=-1: it must be a whole number"),
    ("seed", 1.5, r"^seed=1\.5: it must be a whole number"),
    ("threads", -1, r"^threads=-1: it must be a whole number of at least 1 or null"),
    ("trainer.max_epochs", None, r"^trainer\.max_epochs=null: it must be a whole number of at least -1 "),
    ("student", "cnn", r"^student=cnn: it must be a mapping\. Choose an option with model/student=…$"),
    ("teachers", None, r"^teachers=null: it must be a mapping\. Choose an option with model/teacher=…$"),
    ("teachers.main", None, r"^teachers\.main=null: it must be a mapping\. model/teacher=none is the baseline"),
    (
        "loss.kd",
        None,
        r"^loss\.kd=null: it must be a mapping\. To leave a loss out, .*: loss/response=\[\]$",
    ),
    ("callbacks", None, r"^callbacks=null: it must be a mapping"),
    ("student.input.std", [0], r"^student\.input\.std=\[0\]: it must be a list of numbers greater than 0"),
    (
        "student.input.std",
        [0.5, -0.5],
        r"^student\.input\.std=\[0\.5, -0\.5\]: it must be a list of numbers great",
    ),
    (
        "teachers.main.input.mean",
        ["grey"],
        r"^teachers\.main\.input\.mean=\[grey\]: it must be a list of finite",
    ),
    ("optim.optimizer", None, r"^optim\.optimizer=null: training needs one\. Choose it with optim=sgd or optim=adamw"),
    ("optim.optimizer.lr", -1, r"^optim\.optimizer\.lr=-1: it must be a finite number of at least 0\.$"),
    ("optim.optimizer.lr", "fast", r"^optim\.optimizer\.lr=fast: it must be a finite number"),
    ("optim.interval", "steps", r"^optim\.interval=steps\. Did you mean 'step'\?$"),
    ("min_teacher_score", None, r"^min_teacher_score=null: it must be a score; 0 accepts any"),
    ("min_teacher_score", "high", r"^min_teacher_score=high: it must be a score; 0 accepts any"),
    ("min_teacher_score", 90, r"^min_teacher_score=90: it must be a score between 0 and 1"),
]


def test_a_value_that_would_fail_later(compose_train: Compose) -> None:
    cfg = compose_train(TAUGHT)
    for key, value, message in VALUES:
        with pytest.raises(UserError, match=message):
            check(with_value(cfg, key, value))


def test_the_outermost_right_values_pass(compose_train: Compose) -> None:
    cfg = compose_train(TAUGHT)
    for key, value in (
        ("seed", 2**32 - 1),
        ("threads", 2),
        ("trainer.max_epochs", -1),
        ("optim.optimizer.lr", 0),
        ("optim.interval", "step"),
        ("callbacks.checkpoint_best", None),
        ("min_teacher_score", 1),
        ("min_teacher_score", 0.9),
        ("student.input", {"mean": [0.5], "std": [0.5], "size": 32}),
    ):
        check(with_value(cfg, key, value))


def test_a_target_that_is_no_callable(compose_train: Compose) -> None:
    with pytest.raises(UserError, match=r"student\.net\._target_: cannot import 'distillery\.models\.cnn'.*callable"):
        check(compose_train(TAUGHT, "student.net._target_=distillery.models.cnn"))


def test_a_builtin_that_does_not_tell_its_arguments_is_let_through(compose_train: Compose) -> None:
    cfg = compose_train(TAUGHT)
    with open_dict(cfg):
        cfg.callbacks.counts = {"_target_": "builtins.dict", "anything": 1}
    check(cfg)


def test_a_network_of_timm_without_a_name(compose_train: Compose) -> None:
    cfg = compose_train(TAUGHT)
    with open_dict(cfg):
        cfg.student.net = {"_target_": "timm.create_model"}
    with pytest.raises(UserError, match="timm has no network ''"):
        check(cfg)


def test_a_typo_in_a_list(compose_train: Compose) -> None:
    cfg = compose_train(TAUGHT)
    timer = {"_target_": "lightning.pytorch.callbacks.Timer", "durations": "00:01:00:00"}
    with open_dict(cfg):
        cfg.trainer.plugins = [{"_target_": "lightning.pytorch.callbacks.Timer"}, timer]
    with pytest.raises(UserError, match=r"^Unknown setting 'trainer\.plugins\[1\]\.durations'\. Did you mean 'dur"):
        check(cfg)


# What the message proposes.
UNKNOWN = {
    "sede": "seed",
    "min_teacher_scor": "min_teacher_score",
    "loss.kd.temprature": "temperature",
    "loss.kd.wieght": "weight",
    "loss.kdd.weight": "kd",
    "loss.hnt.weight": "hint",
    "optim.schedular": "scheduler",
    "optim.optimizer.momentun": "momentum",
    "optim.scheduler.Tmax": "T_max",
    "trainer.max_epoch": "max_epochs",
    "callbacks.checkpoint_best.save_topk": "save_top_k",
    "callbacks.term_monitor.every_n_step": "every_n_steps",
    "logger.csv.save_directory": "save_dir",
    "data.batchsize": "batch_size",
    "task.label_smooth": "label_smoothing",
    "student.wieghts": "weights",
    "student.net.width": "widths",
    "student.input.sizes": "size",
    "teachers.main.bnmode": "bn_mode",
    "teachers.main.input.means": "mean",
}


def test_unknown_key_is_refused_with_the_nearest(compose_train: Compose) -> None:
    cfg = compose_train(TAUGHT)
    for key, nearest in UNKNOWN.items():
        refused = re.escape(key.removesuffix(".weight"))  # of a loss that is not there
        with pytest.raises(UserError, match=rf"^Unknown setting '{refused}'\. Did you mean .*'{nearest}'"):
            check(with_value(cfg, key, "x"))


@each_case(
    "overrides",
    [
        [],
        ["loss/feature=[hint]", "loss/relation=[rkd]", "loss/attention=[attention_transfer]"],
        ["model/student=cifar", "model/teacher=cifar", "optim=sgd_steps", "data=cifar100"],
        ["model/student=timm", "student.net.model_name=resnet18", "data=image_folder", "data.root=images"],
        ["debug=overfit", "logger=none", "hardware=gpu"],
        ["callbacks.checkpoint_best=null", "optim.scheduler=null"],
        ["optim.optimizer._target_=torch.optim.RMSprop", "~optim.optimizer.nesterov", "+optim.optimizer.alpha=0.9"],
    ],
)
def test_what_is_right_passes(overrides: list[str], compose_train: Compose) -> None:
    check(compose_train(TAUGHT, *overrides), overrides)


ADAM = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.05, "weight_decay": 5e-4}
EXCHANGED: dict[tuple[str, ...], tuple[str, dict[str, Any]]] = {
    ("optim.optimizer._target_=torch.optim.Adam",): ("optimizer", ADAM),
    ("optim.optimizer._target_=torch.optim.Adam", "optim.optimizer.lr=1"): ("optimizer", {**ADAM, "lr": 1}),
    ("optim.optimizer={_target_: torch.optim.Adam}", "+optim.optimizer.eps=1e-7"): ("optimizer", {**ADAM, "eps": 1e-7}),
    ("optim=adamw", "optim.optimizer._target_=timm.optim.Lion"): (
        "optimizer",
        {"_target_": "timm.optim.Lion", "_partial_": True, "lr": 1e-3, "weight_decay": 0.05},
    ),
    ("optim.scheduler._target_=torch.optim.lr_scheduler.StepLR", "+optim.scheduler.step_size=3"): (
        "scheduler",
        {"_target_": "torch.optim.lr_scheduler.StepLR", "_partial_": True, "step_size": 3},
    ),
}


@each_case(("overrides", "exchanged"), list(EXCHANGED.items()))
def test_another_optimizer_or_scheduler_has_no_leftovers(
    overrides: tuple[str, ...], exchanged: tuple[str, dict[str, Any]], compose_train: Compose, capsys: Any
) -> None:
    node, expected = exchanged
    stages = "+stages={a: {epochs: 1, loss: {kd: {}}}}"
    spec = check(compose_train(TAUGHT, stages, *overrides), [stages, *overrides])
    assert [dict(cfg.optim[node]) for cfg in (spec.cfg, spec.stages[0].cfg)] == [expected] * 2
    (told,) = capsys.readouterr().out.splitlines()
    left = {"optimizer": "fused" if "optim=adamw" in overrides else "momentum, nesterov", "scheduler": "T_max"}[node]
    assert told.startswith(f"optim.{node}: {expected['_target_']} does not take {left}. Kept: ")


def test_what_the_user_has_set_for_an_optimizer_is_never_left_out(compose_train: Compose) -> None:
    given = ["optim.optimizer._target_=torch.optim.Adam", "optim.optimizer.momentum=0.9"]  # as in the file
    refused = r"^Unknown setting 'optim\.optimizer\.momentum'.*remove .*: ~optim\.optimizer\.momentum$"
    with pytest.raises(UserError, match=refused):
        check(compose_train(TAUGHT, *given), given)
    refused = (
        r"^Unknown setting 'optim\.optimizer\.momentum'.*: ~optim\.optimizer\.momentum ~optim\.optimizer\.nesterov$"
    )
    with pytest.raises(UserError, match=refused):  # in a file, which may be the user's
        check(compose_train(TAUGHT, *given))


def test_settings_of_a_deselected_loss_are_accepted_and_make_no_loss(compose_train: Compose) -> None:
    cfg = compose_train("experiment=digits_demo", "loss/response=[]", "loss/relation=[rkd]")
    assert cfg.loss.kd.weight == 0.9  # what the experiment says of it
    check(cfg)
    assert list(losses_of(cfg)) == ["rkd"]
    assert cfg.method == "rkd"


def test_a_wrong_network_of_timm(compose_train: Compose) -> None:
    cfg = compose_train(TAUGHT, "model/student=timm", "student.net.model_name=resnet18d")
    check(cfg)
    cfg.student.net.model_name = "resnet_18"
    with pytest.raises(UserError, match=r"timm has no network 'resnet_18'\. Did you mean .*'resnet18'"):
        check(cfg)
    cfg.student.net.model_name = "resnet18.a1_in1"
    with pytest.raises(UserError, match=r"resnet18 has no weights 'a1_in1'\. Did you mean .*'a1_in1k'"):
        check(cfg)


def test_a_misspelt_teacher(compose_train: Compose) -> None:
    with pytest.raises(UserError, match=r"teachers\.mian has no network\. Did you mean 'teachers\.main'\?"):
        check(compose_train(TAUGHT, "+teachers.mian.bn_mode=train"))


def test_a_second_teacher_is_checked_as_the_first(compose_train: Compose) -> None:
    second = ["+model/teacher@teachers.second=cnn", "teachers.second.weights=b.pth"]
    check(compose_train(TAUGHT, *second))
    with pytest.raises(UserError, match=r"'teachers\.second\.net\.width'\. Did you mean .*'widths'"):
        check(compose_train(TAUGHT, *second, "+teachers.second.net.width=[4]"))


@each_case("key", ["callbacks", "logger", "default_root_dir"])
def test_what_the_run_itself_gives_the_trainer(key: str, compose_train: Compose) -> None:
    with pytest.raises(UserError, match=rf"trainer\.{key} is set by the run"):
        check(compose_train(TAUGHT, f"+trainer.{key}=null"))


def test_settings_without_a_value_are_all_named(compose_train: Compose) -> None:
    with pytest.raises(UserError, match=r"no value yet: student\.net\.model_name=…, teachers\.main\.weights=…"):
        check(compose_train("model/student=timm"))


@each_case(
    ("target", "said"),
    [
        ("distillery.models.cnn.SmalCNN", "SmalCNN"),
        ("distillery.model.cnn.SmallCNN", "distillery.model"),
        ("nowhere.Net", "nowhere"),
    ],
)
def test_a_target_that_cannot_be_imported(target: str, said: str, compose_train: Compose) -> None:
    cfg = compose_train(TAUGHT, f"student.net._target_={target}")
    with pytest.raises(UserError, match=rf"student\.net\._target_: cannot import '{target}': .*{said}"):
        check(cfg)


@each_case("options", ["[kd,kd]", "[kd, dkd, dkd, kd]"])
def test_a_loss_named_twice(options: str, compose_train: Compose) -> None:
    override = f"loss/response={options}"
    cfg = compose_train(TAUGHT)  # Hydra itself would compose it, and count the loss once
    with pytest.raises(UserError, match=r"'kd' is named twice.*\+loss/response@loss\.kd_b=kd"):
        check(cfg, [override])
    check(cfg, ["loss/response=[kd,dkd]", "data.mean=[0.5,0.5]"])


def test_the_proposed_second_instance_is_one(compose_train: Compose) -> None:
    cfg = compose_train(TAUGHT, "+loss/response@loss.kd_b=kd", "loss.kd_b.temperature=2")
    check(cfg)
    assert (cfg.loss.kd.temperature, cfg.loss.kd_b.temperature) == (4, 2)
    assert cfg.method == "kd+kd_b"


def test_without_a_teacher_an_experiment_is_the_baseline(compose_train: Compose) -> None:
    cfg = compose_train("experiment=digits_demo", "model/teacher=none", "loss/feature=[hint]")
    assert "weights" in cfg.teachers.main  # what the experiment says of it
    check(cfg)
    assert not teachers_of(cfg)
    assert cfg.method == method_name(cfg) == "baseline"
    parts = build(cfg)
    assert not parts.distiller.teachers
    assert not parts.distiller.objective.terms
    assert parts.cfg.loss == parts.cfg.teachers == {}


METHODS = [
    ([TAUGHT], "kd"),
    ([TAUGHT, "loss/response=[]"], "baseline"),
    ([TAUGHT, "loss/feature=[hint]"], "kd+hint"),
    ([TAUGHT, "loss/response=[]", "loss/relation=[rkd]"], "rkd"),
    ([TAUGHT, "loss/response=[dkd]"], "dkd"),
    ([TAUGHT, "loss/response=[kd,dkd]", "loss/attention=[attention_transfer]"], "kd+dkd+at"),
    ([TAUGHT, "+loss/response@loss.kd_b=kd"], "kd+kd_b"),
    (["model/teacher=none"], "baseline"),
    (["model/teacher=none", "loss/response=[]"], "baseline"),
]


@each_case(("overrides", "method"), METHODS)
def test_a_run_is_called_by_its_losses(overrides: list[str], method: str, compose_train: Compose) -> None:
    cfg = compose_train(*overrides)
    check(cfg)
    assert cfg.method == method
    assert re.fullmatch(r"[A-Za-z0-9._+-]+", f"{cfg.method}_seed{cfg.seed}")


def test_a_setting_that_some_target_takes_by_any_name_is_let_through(compose_train: Compose) -> None:
    cfg = compose_train(TAUGHT, "model/student=timm", "student.net.model_name=resnet18")
    with open_dict(cfg):
        cfg.student.net.drop_path_rate = 0.1
    check(cfg)


def test_a_tilde_is_the_home_folder(compose_train: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No shell expands it after `key=`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    spec = check(
        compose_train("data=image_folder", "data.root='~/pictures'", "teachers.main.weights='~/t.safetensors'")
    )
    assert spec.cfg.data.root == spec.stages[0].cfg.data.root == str(tmp_path / "pictures")
    assert spec.cfg.teachers.main.weights == str(tmp_path / "t.safetensors")


def test_precision_auto_is_what_the_device_computes(compose_train: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    for native, precision in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        (stage,) = check(compose_train(TAUGHT, "trainer.precision=auto")).stages
        assert stage.cfg.trainer.precision == precision


def test_clipped_gradients_of_a_fused_optimizer_in_mixed_precision(compose_train: Compose) -> None:
    """Lightning itself fails in exactly the cases that are refused."""
    precisions: list[_PRECISION_INPUT] = ["bf16-mixed", "32-true"]
    plugins = {each: L.Trainer(accelerator="cpu", precision=each, logger=False).precision_plugin for each in precisions}
    cfg = compose_train(TAUGHT, "optim=adamw")
    for precision, fused, clip in product(precisions, (True, False), (1.0, None)):
        for key, value in {
            "trainer.precision": precision,
            "optim.optimizer.fused": fused,
            "trainer.gradient_clip_val": clip,
        }.items():
            cfg = with_value(cfg, key, value)
        network = nn.Linear(2, 2)
        optimizer = torch.optim.AdamW(network.parameters(), fused=fused)
        network(torch.ones(1, 2)).sum().backward()
        try:
            plugins[precision].clip_gradients(optimizer, clip or 0, GradClipAlgorithmType.NORM)
        except RuntimeError:
            with pytest.raises(UserError, match=r"gradient_clip_val=1.0: .*bf16-mixed.*optimizer\.fused=false"):
                check(cfg)
        else:
            check(cfg)
