"""`objective.balance=auto`: the weights against a plain loop's gradients, and that they stay."""

import json
import re
from contextvars import Context
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from omegaconf import DictConfig

from distillery.config.check import check
from distillery.core.errors import UserError
from distillery.losses.feature.hint import Hint
from distillery.runs.job import resumed
from distillery.runs.plan import term_table
from distillery.runs.run import train
from fixtures.building import build
from fixtures.by_hand import LAYERS, ByHand
from fixtures.composing import Compose, with_hint
from fixtures.runs import Died, Dies, sha256

pytestmark = pytest.mark.filterwarnings("ignore:Teacher 'main' scores", "ignore:Some losses hardly reach")
AUTO = (LAYERS, "objective.balance=auto", "objective.balance_steps=5", "callbacks.scale_report=null")


@pytest.fixture
def composed(compose_train: Compose, tmp_path: Path) -> Compose:
    """8 steps, in one epoch."""
    return with_hint(compose_train, tmp_path, epochs=1)


def balanced(cfg: DictConfig) -> Any:
    return json.loads((Path(cfg.paths.run) / "balance.json").read_text())


def mean_norms(watch: ByHand, steps: int) -> dict[str, float]:
    return pd.DataFrame(watch.norms[:steps]).mean().to_dict()


def test_each_weight_is_the_ratio_of_the_norms_so_far_and_then_stays(composed: Compose) -> None:
    cfg, watch = composed(*AUTO, "task.weight=0.5", "trainer.log_every_n_steps=1"), ByHand()
    train(cfg, callbacks=[watch])
    assert watch.weights[0] == {"task": 0.5, "kd": 0.0, "hint": 0.0}
    for step in range(1, 8):
        norms = mean_norms(watch, min(step, 5))
        expected = {"task": 0.5} | {name: 0.5 * norms["task"] / norms[name] for name in ("kd", "hint")}
        assert watch.weights[step] == pytest.approx(expected, rel=1e-4)
    assert watch.weights[5] == watch.weights[6] == watch.weights[7] != watch.weights[4]
    found = {f"loss.{name}.weight": watch.weights[7][name] for name in ("kd", "hint")}
    assert balanced(cfg) == found

    lines = pd.read_csv(Path(cfg.paths.run) / "metrics" / "version_0" / "metrics.csv").dropna(subset=["train/loss"])
    for name in ("kd", "hint"):
        assert lines[f"train/{name}.weight"].tolist() == [row[name] for row in watch.weights]


def test_the_weights_can_be_given_by_hand(composed: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed is what was trained with, to the last digit."""
    cfg = composed(*AUTO)
    Context().run(train, cfg)
    (line,) = re.findall(r"Balanced. The same weights by hand: (.*)", capsys.readouterr().out)
    by_hand = composed(*line.split(), run="other")
    assert {f"loss.{name}.weight": by_hand.loss[name].weight for name in ("kd", "hint")} == balanced(cfg)


def test_fewer_steps_than_asked_for_are_all_that_is_measured(
    composed: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg, watch = composed(*AUTO, "objective.balance_steps=100"), ByHand()
    train(cfg, callbacks=[watch])
    assert "Balanced" not in capsys.readouterr().out, "it is hushed"
    norms = mean_norms(watch, 8)
    expected = {f"loss.{name}.weight": norms["task"] / norms[name] for name in ("kd", "hint")}
    assert balanced(cfg) == pytest.approx(expected, rel=1e-4)


def test_without_a_task_loss_the_first_keeps_its_weight(composed: Compose) -> None:
    cfg, watch = composed(*AUTO, "task.weight=0", "loss.kd.weight=0.7"), ByHand()
    train(cfg, callbacks=[watch])
    norms = mean_norms(watch, 5)
    assert balanced(cfg) == pytest.approx({"loss.hint.weight": 0.7 * norms["kd"] / norms["hint"]}, rel=1e-4)
    assert {row["kd"] for row in watch.weights} == {0.7}


@pytest.mark.parametrize("after", [pytest.param(3, marks=pytest.mark.slow), 6])
def test_a_resumed_run_ends_bit_equal(after: int, composed: Compose) -> None:
    """Stopped while it is measured, and later."""
    each = ("callbacks.checkpoint_last.every_n_epochs=null", "+callbacks.checkpoint_last.every_n_train_steps=1")
    whole = composed(*AUTO, run="whole")
    expected = train(whole).folder
    cfg = composed(*AUTO, *each)
    with pytest.raises(Died):
        train(cfg, callbacks=[Dies(after)])
    watch = ByHand()
    folder = train(resumed(Path(cfg.paths.run), []), callbacks=[watch]).folder
    assert len(watch.weights) == 8 - after
    assert sha256(folder / "student.safetensors") == sha256(expected / "student.safetensors")
    assert balanced(cfg) == balanced(whole)
    torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def test_the_baseline_has_nothing_to_balance(compose_train: Compose) -> None:
    small = ["data.train_size=100", "data.batch_size=25", "trainer.max_epochs=1"]
    cfg = compose_train("model/teacher=none", "objective.balance=auto", *small)
    assert train(cfg).record.status == "finished"
    assert not (Path(cfg.paths.run) / "balance.json").exists()


def test_the_plan_says_so(composed: Compose) -> None:
    weights = [*term_table(build(composed(*AUTO))).columns[1].cells]
    assert weights == ["1", "auto", "auto"]


@pytest.mark.parametrize("path", ["loss.kd.weight", "task.weight"])
def test_a_schedule_of_a_weight_is_refused(path: str, composed: Compose) -> None:
    cfg = composed(*AUTO, f"{path}={{schedule: warmup, to: 1, epochs: 1}}")
    with pytest.raises(UserError, match=rf"^{re.escape(path)} has a schedule, but objective\.balance=auto needs"):
        build(cfg)
    build(composed(*AUTO, "loss.kd.temperature={schedule: linear, start: 2, end: 4, epochs: 1}"))


def test_there_must_be_something_to_balance_against(composed: Compose) -> None:
    with pytest.raises(UserError, match=r"if task\.weight is 0, .*loss\.kd\.weight is 0, too"):
        train(composed(*AUTO, "task.weight=0", "loss.kd.weight=0"))


def test_a_loss_that_does_not_reach_the_student_is_named(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hint, "forward", lambda self, student, teacher, batch: torch.ones(len(student.logits)))
    with pytest.raises(UserError, match=r"loss\.hint has given the student no finite gradient in 5 steps"):
        train(composed(*AUTO))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective.balance=atuo", r"^objective\.balance=atuo\. Did you mean 'auto'\?"),
        ("objective.balance_steps=0", r"^objective\.balance_steps=0: it must be a whole number of at least 1"),
        ("objective.balance_steps=1.5", r"^objective\.balance_steps=1\.5: it must be a whole number"),
        ("+objective.balence=auto", r"^Unknown setting 'objective\.balence'\. Did you mean 'balance"),
        ("compile=true", r"^objective\.balance=auto goes backward several times .* compile=false"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_built(override: str, message: str, composed: Compose) -> None:
    with pytest.raises(UserError, match=message):
        check(composed(*AUTO, override))
