"""Names and values that are refused because something later would take them wrongly, or not at all."""

from typing import Any

import pytest
from omegaconf import OmegaConf, open_dict

from distillery.config.check import check
from distillery.core.errors import UserError
from fixtures.composing import Compose

TAUGHT = "teachers.main.weights=teacher.safetensors"


@pytest.mark.parametrize("name", ["student", "index", "target"])
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
    ("min_teacher_score", None, r"^min_teacher_score=null: it must be a score between 0 and 1"),
    ("min_teacher_score", "high", r"^min_teacher_score=high: it must be a score between 0 and 1"),
    ("min_teacher_score", 90, r"^min_teacher_score=90: it must be a score between 0 and 1"),
]


@pytest.mark.parametrize(("key", "value", "message"), VALUES)
def test_a_value_that_would_fail_later(key: str, value: Any, message: str, compose_train: Compose) -> None:
    cfg = compose_train(TAUGHT)
    OmegaConf.update(cfg, key, value)
    with pytest.raises(UserError, match=message):
        check(cfg)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 2**32 - 1),
        ("threads", 2),
        ("trainer.max_epochs", -1),
        ("optim.optimizer.lr", 0),
        ("optim.interval", "step"),
        ("callbacks.checkpoint_best", None),
        ("min_teacher_score", 1),
        ("min_teacher_score", 0.9),
        ("student.input", {"mean": [0.5], "std": [0.5], "size": 32}),
    ],
)
def test_the_outermost_right_values_pass(key: str, value: Any, compose_train: Compose) -> None:
    cfg = compose_train(TAUGHT)
    OmegaConf.update(cfg, key, value)
    check(cfg)


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
