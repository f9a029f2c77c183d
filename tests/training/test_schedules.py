"""Numbers that change during training: their values, what they do in a run, and what is refused."""

import math
import re
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from rich.console import Console
from torchmetrics.classification import MulticlassAccuracy

from distillery.config.check import check
from distillery.core.errors import UserError
from distillery.losses.response.kd import KD
from distillery.losses.several import Several
from distillery.results.record import config_hash
from distillery.runs.job import resumed
from distillery.runs.plan import schedule_table, term_table
from distillery.runs.run import train
from distillery.tasks.classification import Classification
from distillery.training.objective import Objective
from distillery.training.schedules import SCHEDULES, Progress, parse
from fixtures.building import build
from fixtures.composing import Compose, with_hint
from fixtures.runs import Died, Dies, sha256

PER_EPOCH = 4
AT = np.arange(0, 41)  # updates done: ten epochs
EPOCH = AT / PER_EPOCH

# What a config says, and the values before each update, by NumPy.
VALUES: list[tuple[dict[str, Any], np.ndarray]] = [
    ({"schedule": "constant", "value": 3}, np.full(41, 3.0)),
    ({"schedule": "linear", "start": 0, "end": 1, "epochs": 5}, np.interp(EPOCH, [0, 5], [0, 1])),
    ({"schedule": "linear", "start": 2, "end": 0.5, "steps": 7}, np.interp(AT, [0, 7], [2, 0.5])),
    ({"schedule": "linear", "start": 1, "end": 3, "epochs": 2.5, "from": 1}, np.interp(EPOCH, [1, 3.5], [1, 3])),
    ({"schedule": "warmup", "to": 8, "epochs": 20}, np.interp(EPOCH, [0, 20], [0, 8])),
    ({"schedule": "warmup", "to": 1, "steps": 3, "from": 2}, np.interp(AT, [2, 5], [0, 1])),
    (
        {"schedule": "cosine", "start": 1, "end": 0, "steps": 20},
        np.where(AT < 20, np.cos(np.pi * AT / 40) ** 2, 0),  # cos²(x / 2) = (1 + cos x) / 2
    ),
    (
        {"schedule": "cosine", "start": 0, "end": 4, "epochs": 5, "from": 2},
        4 * np.sin(np.pi / 2 * np.clip((EPOCH - 2) / 5, 0, 1)) ** 2,
    ),
    (
        {"schedule": "step", "values": [1, 0.1, 0.01], "epochs": [3, 5.5]},
        np.array([1] * 12 + [0.1] * 10 + [0.01] * 19),
    ),
    ({"schedule": "step", "values": [1, 2], "steps": [1]}, np.array([1] + [2] * 40)),
    ({"schedule": "on", "from": 2, "until": 3, "value": 5}, np.array([0] * 8 + [5] * 4 + [0] * 29)),
    ({"schedule": "on", "from": 2, "value": 5, "otherwise": 1}, np.array([1] * 8 + [5] * 33)),
    ({"schedule": "on", "until": 3, "unit": "steps", "value": 5}, np.array([5] * 3 + [0] * 38)),
    ({"schedule": "off", "from": 2, "value": 5}, np.array([5] * 8 + [0] * 33)),
    ({"schedule": "on", "from": 0, "value": 5}, np.full(41, 5.0)),
    ({"schedule": "off", "from": 4, "until": 6, "unit": "steps", "value": 5}, np.array([5] * 4 + [0] * 2 + [5] * 35)),
    ({"schedule": "linear", "start": 0, "end": 1, "steps": 20, "epochs": None}, np.interp(AT, [0, 20], [0, 1])),
]


@pytest.mark.parametrize(("given", "expected"), VALUES, ids=str)
def test_values(given: dict[str, Any], expected: np.ndarray) -> None:
    schedule = parse("loss.kd.weight", given)
    found = [schedule.value(Progress(int(step), PER_EPOCH)) for step in AT]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert min(schedule.values) <= min(found)
    assert max(found) <= max(schedule.values)
    assert math.isclose(found[-1], expected[-1], rel_tol=0), "an end is reached exactly, not nearly"


def test_every_schedule_is_among_these() -> None:
    assert {given["schedule"] for given, _ in VALUES} == set(SCHEDULES)


@pytest.mark.parametrize(("name", "before", "after"), [("on", 1.0, 5.0), ("off", 5.0, 1.0)])
@pytest.mark.parametrize(("side", "passing", "not_passing"), [("above", 0.81, 0.8), ("below", 0.79, 0.8)])
def test_waiting_for_a_metric(
    name: str, before: float, after: float, side: str, passing: float, not_passing: float
) -> None:
    given = {"schedule": name, "when": "val/score", side: 0.8, "value": 5, "otherwise": 1}
    schedule = parse("loss.kd.weight", given)
    assert schedule.value(Progress(39, 4)) == before
    assert schedule.value(Progress(0, 4, met=True)) == after
    assert sorted(schedule.values) == [1, 5]
    assert schedule.passed(passing)
    assert not schedule.passed(not_passing)


@pytest.mark.parametrize("name", ["on", "off"])
def test_yaml_reads_on_and_off_as_truth_values(name: str) -> None:
    given = yaml.safe_load(f"{{schedule: {name}, from: 2, value: 5}}")
    assert isinstance(given["schedule"], bool)
    assert parse("x", given) == parse("x", {**given, "schedule": name})


WRONG = [
    ({"schedule": "liner"}, r"unknown schedule 'liner'\. Did you mean 'linear'"),
    ({"shedule": "linear"}, r"is not a number and has no `schedule`\. Choose from: constant, cosine, linear"),
    ({"schedule": "linear", "strat": 0}, r"schedule linear has no 'strat'\. Did you mean 'start'"),
    ({"schedule": "linear", "start": 0, "epochs": 2}, r"schedule linear lacks 'end'"),
    ({"schedule": "linear", "start": 0, "end": 1}, r"give either epochs or steps"),
    ({"schedule": "linear", "start": 0, "end": 1, "epochs": 1, "steps": 4}, r"give either epochs or steps"),
    ({"schedule": "linear", "start": 0, "end": 1, "epochs": 0}, r"epochs=0: it must be a finite number greater than 0"),
    ({"schedule": "linear", "start": 0, "end": math.inf, "epochs": 1}, r"end=inf: it must be a finite number"),
    ({"schedule": "cosine", "start": "low", "end": 1, "epochs": 1}, r"start=low: it must be a finite number"),
    ({"schedule": "constant", "value": True}, r"value=true: it must be a finite number"),
    ({"schedule": "warmup", "to": 1, "epochs": 1, "from": -1}, r"from=-1: it must be a finite number of at least 0"),
    ({"schedule": "step", "values": [1, 2], "epochs": [1, 2]}, r"2 values need 1 epochs at which to change"),
    ({"schedule": "step", "values": [1, 2, 3], "epochs": [2, 2]}, r"epochs=\[2, 2\]: they must increase"),
    (
        {"schedule": "step", "values": [1, 2], "steps": [0]},
        r"steps=\[0\]: it must be a list, each entry a finite number greater than 0",
    ),
    ({"schedule": "step", "values": 1, "steps": [1]}, r"values=1: it must be a list, each entry a finite number"),
    ({"schedule": "on", "value": 1}, r"lacks 'from', 'until' or 'when'"),
    ({"schedule": "on", "from": 3, "until": 3, "value": 1}, r"until=3 must come after from=3"),
    ({"schedule": "on", "from": 3, "value": 1, "unit": "step"}, r"unit=step\. Did you mean 'steps'"),
    ({"schedule": "on", "when": "val/score", "value": 1}, r"with `above` or `below`"),
    ({"schedule": "on", "above": 0.5, "value": 1}, r"`when: <metric>`"),
    ({"schedule": "on", "when": "val/score", "above": 0.5, "from": 1, "value": 1}, r"or `from` and `until`"),
]


@pytest.mark.parametrize(("given", "message"), WRONG, ids=str)
def test_what_is_no_schedule_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"^loss\.kd\.weight.*{message}"):
        parse("loss.kd.weight", given)


@pytest.fixture
def composed(compose_train: Compose, tmp_path: Path) -> Compose:
    """8 steps an epoch."""
    return with_hint(compose_train, tmp_path, epochs=2)


REFUSED = [
    # The schedule is wrong: seen in the config alone.
    ("loss.kd.weight={schedule: linear, start: 0, end: 1, epoch: 2}", r"^loss\.kd\.weight: .*Did you mean 'epochs'"),
    ("task.weight={schedule: lin}", r"^task\.weight: unknown schedule 'lin'"),
    ("loss.kd.t_squared={schedule: constant, value: 1}", r"^loss\.kd\.t_squared cannot have .*not a number"),
    # A value that it comes to is not allowed.
    ("loss.kd.temperature={schedule: warmup, to: 4, epochs: 1}", r"^loss\.kd\.temperature=0\.0: .*greater than 0"),
    ("task.label_smoothing={schedule: linear, start: 0, end: 1.5, steps: 3}", r"^task\.label_smoothing=1\.5: it must"),
    ("loss.kd.temperature={schedule: on, when: val/score, above: 0.5, value: 2}", r"^loss\.kd\.temperature=0\.0"),
    # A metric that will not be there.
    (
        "loss.kd.weight={schedule: on, when: val/scor, above: 0.5, value: 1}",
        r"^loss\.kd\.weight: when=val/scor: nothing logs such a metric\. Did you mean 'val/score'",
    ),
    (
        "loss.kd.weight={schedule: on, when: step, above: 3, value: 1}",
        r"^loss\.kd\.weight: when=step: this is no metric\. .* `from` and `until`, with unit=steps",
    ),
    ("task.weight={schedule: on, when: epoch, above: 1, value: 1}", r"^task\.weight: when=epoch: .* with unit=epochs"),
]


@pytest.mark.parametrize(("override", "message"), REFUSED, ids=[override for override, _ in REFUSED])
def test_it_is_refused_before_training(override: str, message: str, composed: Compose) -> None:
    cfg = composed(override)
    with pytest.raises(UserError, match=message):
        train(cfg)
    assert not Path(cfg.paths.run).exists()


def test_a_number_that_is_read_once_is_refused(composed: Compose) -> None:
    cfg = composed("loss/feature=[hint,vid]", "loss.vid.init_pred_var={schedule: linear, start: 5, end: 1, epochs: 1}")
    check(cfg)
    with pytest.raises(UserError, match=r"^loss\.vid\.init_pred_var cannot have a schedule: it is read once"):
        build(cfg)


class Watch(L.Callback):
    """The numbers that each step was trained with, what it minimised, and the sum that this should be."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        owners = {"task": module.objective.task, **module.objective.terms}
        terms = {name: value.item() for name, value in outputs["terms"].items()}
        row = {f"{name}.weight": owner.weight for name, owner in owners.items()}
        row |= {"kd.temperature": owners["kd"].temperature, "loss": terms["loss"]}
        self.rows.append({**row, "sum": sum(owner.weight * terms[name] for name, owner in owners.items())})


MANY = [
    "loss.kd.weight={schedule: warmup, to: 0.8, epochs: 1.5}",
    "loss.kd.temperature={schedule: step, values: [4, 2], steps: [5]}",
    "loss.hint.weight={schedule: on, from: 1, until: 1.25, value: 0.3}",
    "task.weight={schedule: cosine, start: 1, end: 0.1, epochs: 2}",
    "trainer.log_every_n_steps=1",
]
untrained = pytest.mark.filterwarnings("ignore:Teacher 'main' scores")


def lines(folder: str, version: int = 0) -> pd.DataFrame:
    """What TermMonitor logged."""
    path = Path(folder) / "metrics" / f"version_{version}" / "metrics.csv"
    return pd.read_csv(path).dropna(subset=["train/loss"]).set_index("step")


@untrained
def test_each_step_is_trained_with_its_numbers_and_they_are_logged(composed: Compose) -> None:
    cfg, watch = composed(*MANY), Watch()
    train(cfg, callbacks=[watch])
    step = np.arange(16)
    expected = {
        "kd.weight": np.interp(step, [0, 12], [0, 0.8]),
        "kd.temperature": np.where(step < 5, 4, 2),
        "hint.weight": np.where((step >= 8) & (step < 10), 0.3, 0),
        "task.weight": 0.1 + 0.9 * np.cos(np.pi * step / 32) ** 2,
    }
    seen, logged = pd.DataFrame(watch.rows), lines(cfg.paths.run)
    for name, values in expected.items():
        np.testing.assert_allclose(seen[name], values, rtol=1e-12, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(logged[f"train/{name}"], values, rtol=1e-12, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(seen["loss"], seen["sum"], rtol=1e-5)
    assert seen["loss"].nunique() == 16


def test_a_loss_with_several_teachers_has_one_schedule_for_all() -> None:
    kd = Several([KD(teacher="main"), KD(teacher="other")])
    given = {"schedule": "linear", "start": 1, "end": 3, "steps": 4}
    made = Objective(
        Classification(), {"kd": kd}, {f"kd.{name}": parse("x", given) for name in ("weight", "temperature")}
    )
    made.follow(Progress(2, 100))
    assert [(term.weight, term.temperature) for term in kd.by_teacher.values()] == [(2, 2), (2, 2)]
    assert (kd.weight, made.changing()) == (2, {"kd.weight": 2, "kd.temperature": 2})


@untrained
def test_an_epoch_is_its_updates(composed: Compose) -> None:
    """5 of the 8 batches, 2 an update: 3 updates an epoch, of which the batches of one have the same number."""
    cfg = composed(
        "loss.kd.weight={schedule: warmup, to: 1, epochs: 1}",
        "trainer.limit_train_batches=5",
        "trainer.accumulate_grad_batches=2",
    )
    watch = Watch()
    train(cfg, callbacks=[watch])
    weights = [row["kd.weight"] for row in watch.rows]
    assert weights == pytest.approx([0, 0, 1 / 3, 1 / 3, 2 / 3, 1, 1, 1, 1, 1])


@untrained
def test_a_constant_is_the_number(composed: Compose) -> None:
    """Bit for bit, also where the loss draws first weights of its own, which the checks of its values must not."""
    plain = train(composed("loss.hint.weight=0.5", run="plain"))
    constant = train(composed("loss.hint.weight={schedule: constant, value: 0.5}", run="constant"))
    assert sha256(plain.folder / "student.safetensors") == sha256(constant.folder / "student.safetensors")
    assert plain.record.config_hash != constant.record.config_hash
    assert plain.record.method == constant.record.method == "kd+hint"
    names = {name for name in lines(str(plain.folder)).dropna(axis=1) if name.startswith("train/")}
    assert names == {f"train/{name}" for name in ("loss", "task", "kd", "hint")}, (
        "numbers that change are logged, others not"
    )


WAITING = ["loss.kd.weight={schedule: on, when: val/score, above: 0.5, value: 1, otherwise: 0.25}"]


def scored(monkeypatch: pytest.MonkeyPatch, *scores: float) -> None:
    """The validation scores of the epochs, instead of the student's own."""
    left = [*scores]
    monkeypatch.setattr(MulticlassAccuracy, "compute", lambda self: torch.tensor(left.pop(0) if left else 0.0))


@untrained
def test_a_metric_that_has_once_been_met_stays_met(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, 0.4, 0.6, 0.3, 0.2)
    watch = Watch()
    train(composed(*WAITING, "trainer.max_epochs=4", "callbacks.teacher_guard=null"), callbacks=[watch])
    assert [row["kd.weight"] for row in watch.rows] == [0.25] * 16 + [1] * 16


@untrained
def test_it_is_still_met_after_a_stop(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, 0.6, 0.1, 0.1, 0.1)
    cfg, watch = composed(*WAITING, "trainer.max_epochs=3", "callbacks.teacher_guard=null"), Watch()
    with pytest.raises(Died):
        train(cfg, callbacks=[Dies(20)])
    train(resumed(Path(cfg.paths.run), []), callbacks=[watch])
    assert [row["kd.weight"] for row in watch.rows] == [1] * 8, "only the last epoch was left"


@untrained
@pytest.mark.parametrize("after", [pytest.param(8, marks=pytest.mark.slow), 11])
def test_a_resumed_run_ends_bit_equal(after: int, composed: Compose) -> None:
    """Also from the middle of an epoch."""
    each = ("callbacks.checkpoint_last.every_n_epochs=null", "+callbacks.checkpoint_last.every_n_train_steps=1")
    whole = train(composed(*MANY, run="whole")).folder
    cfg = composed(*MANY, *each)
    with pytest.raises(Died):
        train(cfg, callbacks=[Dies(after)])
    folder = train(resumed(Path(cfg.paths.run), [])).folder
    assert sha256(folder / "student.safetensors") == sha256(whole / "student.safetensors")
    later, expected = (lines(str(run), version).filter(like="train/") for run, version in ((folder, 1), (whole, 0)))
    assert later.index[0] == after + 1
    pd.testing.assert_frame_equal(later, expected.loc[later.index], check_exact=True)


def printed(table: Any) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_the_plan_shows_them(composed: Compose) -> None:
    waiting = "loss.hint.weight={schedule: on, when: val/loss, below: 0.5, value: 1}"
    parts = build(composed("loss.kd.weight={schedule: warmup, to: 1, epochs: 4}", waiting))
    table = printed(schedule_table(parts))
    assert re.search(r"kd\.weight +│ linear 0 → 1, 4 epochs +│ 0 +│ 0\.4688 ", table)  # 15 / 32
    assert re.search(r"hint\.weight +│ 0, 1 once val/loss is below 0\.5 +│ 0 +│ \? ", table)
    assert len(re.findall("see schedules", printed(term_table(parts)))) == 2
    assert schedule_table(build(composed())).row_count == 0


def test_it_composes_from_experiments_and_the_command_line(composed: Compose) -> None:
    cfg = composed("loss.kd.weight={schedule: linear, start: 0, end: 1, epochs: 20}")
    other = composed("loss.kd.weight={schedule: linear, start: 0, end: 1, epochs: 20}", "loss.kd.weight.epochs=5")
    number = composed("loss.kd.weight={schedule: linear, start: 0, end: 1, epochs: 20}", "loss.kd.weight=0.5")
    for each in (cfg, other, number):
        check(each)
    assert parse("x", cfg.loss.kd.weight).length == 20
    assert parse("x", other.loss.kd.weight).length == 5
    assert number.loss.kd.weight == 0.5
    plain = [OmegaConf.to_container(each, resolve=True) for each in (cfg, other, number)]
    assert len({config_hash(each) for each in plain}) == 3
    assert {each.method for each in (cfg, other, number)} == {"kd+hint"}
