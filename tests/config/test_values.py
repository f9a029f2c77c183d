"""Values of another type: taken where they can mean one thing only, otherwise refused by the setting's full name."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from distillery.config.check import check
from distillery.core.errors import UserError
from distillery.models.cnn import SmallCNN
from distillery.models.weights import save_weights
from distillery.runs.run import train
from fixtures.composing import Compose, with_value

VALUES = ("abc", None, 1.5, -1, [1])
# A folder or a file that is written to, a command that does something else, and interpolated settings, which are
# scanned where they come from.
LEFT_OUT = ("paths.", "resume", "plan")
ENDLESS = ("trainer.max_epochs", -1)
MEANT: list[tuple[str, Any, Any]] = [
    ("data.batch_size", 25.0, 25),
    ("data.train_size", 1e2, 100),
    ("data.train_size", "None", None),
    ("data.num_workers", 0.0, 0),
    ("seed", 1.0, 1),
    ("trainer.max_epochs", 2.0, 2),
    ("trainer.limit_train_batches", 1.0, 1.0),  # all of them, not the first
    ("student.net.widths", [4.0, 4], [4, 4]),
    ("optim.scheduler.T_max", 3.0, 3),
    ("loss.kd.weight", 1, 1),  # and not 1.0: it is the same job
    ("method", 7, "7"),
]
REFUSED: list[tuple[str, Any, str]] = [
    ("data.batch_size", None, "a whole number of at least 1"),
    ("data.batch_size", 0, "a whole number of at least 1"),
    ("data.num_workers", "abc", "a whole number of at least 0"),
    ("data.num_workers", True, "a whole number of at least 0"),
    ("trainer.accumulate_grad_batches", None, "a whole number of at least 1"),
    ("trainer.max_steps", None, "a whole number of at least -1"),
    ("trainer.detect_anomaly", "abc", "true or false"),
    ("trainer.limit_train_batches", 1.5, "a whole number of batches, or a share of them from 0.0 to 1.0, or null"),
    ("trainer.devices", 0, "a number of devices of at least 1"),
    ("trainer.devices", "all", "a number of devices of at least 1"),
    ("trainer.devices", "0", "a number of devices of at least 1"),
    ("trainer.devices", [], "a number of devices of at least 1"),
    ("trainer.devices", -1, "a number of processes of at least 1"),
    ("loss.kd.teacher", None, "the name of a teacher"),
    ("loss.kd.temperature", "None", "a finite number"),
    ("loss.kd.t_squared", 1, "true or false"),
    ("teachers.main.cache", "yes", "true or false or a folder that distill-cache has written"),
    ("teachers.main.weights", [1], "text or null"),
    ("optim.scheduler.T_max", 1.5, "a whole number"),
    ("callbacks.scale_report.steps", -1, "a whole number of at least 0"),
    ("compile", "abc", "true, false, reduce-overhead or auto"),
]


@pytest.fixture
def demo(compose_train: Compose, tmp_path: Path) -> DictConfig:
    """The demo's recipe, with a small student and an untrained teacher."""
    torch.manual_seed(0)
    save_weights(SmallCNN(10, 1, (4, 6)), tmp_path / "teacher.safetensors")
    return compose_train(
        "experiment=digits_demo",
        "model/teacher=cnn",
        "teachers.main.net.widths=[4,6]",
        f"teachers.main.weights={tmp_path / 'teacher.safetensors'}",
        "student.net.widths=[4,4]",
        "loss/feature=[hint]",
        "min_teacher_score=0",
        "trainer.max_epochs=2",
        "trainer.check_val_every_n_epoch=1",
        "data.train_size=50",
        "callbacks.checkpoint_last.every_n_epochs=1",
    )


def test_what_can_mean_one_thing_only_is_taken(demo: DictConfig) -> None:
    for key, value, meant in MEANT:
        cfg = with_value(demo, key, value)
        found: Any = OmegaConf.select(check(cfg).cfg, key)
        assert (found, type(found if meant is None else meant)) == (meant, type(meant)), key
        assert OmegaConf.select(cfg, key) == value  # the argument is as it was


def test_so_it_is_in_a_stage(compose_train: Compose) -> None:
    stages = "{one: {epochs: 1.0, loss: {}, data: {batch_size: 25.0}}, two: {steps: 4.0, optim: {interval: step}}}"
    spec = check(compose_train("experiment=digits_demo", "teachers.main.weights=x", f"+stages={stages}"))
    one, two = spec.stages
    lengths = [one.cfg.trainer.max_epochs, one.cfg.data.batch_size, two.steps, two.cfg.data.batch_size]
    assert lengths == [1, 25, 4, 25]
    assert {*map(type, lengths)} == {int}
    assert two.lasting(7).cfg.optim.scheduler.T_max == 7  # the length is still open


def test_a_float_for_the_length_leaves_each_stage_a_cosine_of_its_own(compose_train: Compose) -> None:
    given = ("experiment=digits_demo", "teachers.main.weights=x", "trainer.max_epochs=10.0", "seed=3.0")
    spec = check(compose_train(*given, "+stages={one: {epochs: 40%}, two: {epochs: 60%}}"))
    assert [stage.cfg.optim.scheduler.T_max for stage in spec.stages] == [4, 6]
    assert [type(value) for value in (spec.cfg.seed, spec.stages[0].seed)] == [int, int]


def test_other_values_are_refused_by_the_full_name(demo: DictConfig) -> None:
    for key, value, wanted in REFUSED:
        with pytest.raises(UserError) as error:
            check(with_value(demo, key, value))
        assert str(error.value).startswith(f"{key}="), (key, str(error.value))
        assert f"it must be {wanted}" in str(error.value).replace("on CPUs ", "")
    with pytest.raises(UserError, match=r"^teachers\.main\.bn_mode=null\. Choose from: eval, train"):
        check(with_value(demo, "teachers.main.bn_mode", None))


def leaves(node: Any, path: str = "") -> Iterator[str]:
    """Every setting that has no settings below it."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key))
    elif not isinstance(node, str) or "${" not in node:
        yield path


@pytest.mark.slow
def test_no_value_of_a_setting_ends_in_a_traceback(demo: DictConfig, tmp_path: Path) -> None:
    """Every setting of the recipe with five values: the run works, or a `UserError` has the setting's name.

    That is the full name, or, where what refuses it is the thing that is made of these settings, that of the node:
    `loss.hint: There is no projector 'abc'`.
    """
    wrong = []
    for key in leaves(OmegaConf.to_container(demo)):
        if key.startswith(LEFT_OUT) or key.endswith("_target_"):
            continue
        for value in VALUES:
            if (key, value) == ENDLESS:
                continue
            try:
                train(with_value(demo, key, value))
            except UserError as error:
                if ".".join(key.split(".")[:2]) not in str(error):
                    wrong.append(f"{key}={value}: {error}")
            except Exception as error:
                wrong.append(f"{key}={value}: {type(error).__name__} {error}")
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong)
