"""What the report says of a run against a plain loop, and that it leaves the run as it is."""

from contextvars import Context, copy_context
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from omegaconf import DictConfig
from torch import nn

from distillery.runs.run import train
from distillery.training.callbacks import scale_report
from distillery.training.callbacks.scale_report import figures, unheard
from distillery.training.gradient_norms import gradient_norms, is_measurable
from fixtures.building import build
from fixtures.by_hand import LAYERS, ByHand
from fixtures.composing import Compose, with_hint
from fixtures.runs import sha256

pytestmark = pytest.mark.filterwarnings("ignore:Teacher 'main' scores")
WEIGHTS = {"task": 0.5, "kd": 0.3, "hint": 2.0}
SET = [LAYERS, *(f"{'task' if name == 'task' else f'loss.{name}'}.weight={value}" for name, value in WEIGHTS.items())]


@pytest.fixture
def composed(compose_train: Compose, tmp_path: Path) -> Compose:
    """8 steps, in one epoch."""
    return with_hint(compose_train, tmp_path, epochs=1)


def logged(cfg: DictConfig) -> pd.Series:
    """What was logged of the scales: one line, without its prefix."""
    lines = pd.read_csv(Path(cfg.paths.run) / "metrics" / "version_0" / "metrics.csv")
    scales = lines.filter(like="scale/")
    (line,) = scales.dropna().index
    found = scales.loc[line].rename(lambda name: name.removeprefix("scale/"))
    return pd.concat([found, lines.loc[line, ["step"]]])


@pytest.mark.parametrize(("steps", "measured"), [(3, 3), (20, 8)])
def test_the_figures_are_those_of_a_plain_loop(steps: int, measured: int, composed: Compose) -> None:
    cfg, watch = composed(*SET, f"callbacks.scale_report.steps={steps}"), ByHand()
    train(cfg, callbacks=[watch])
    raw, norms = (pd.DataFrame(rows[:measured]).mean() for rows in (watch.losses, watch.norms))
    pulls = norms * pd.Series(WEIGHTS)
    expected = {"step": measured}
    for name, weight in WEIGHTS.items():
        expected |= {f"{name}/raw": raw[name], f"{name}/weighted": weight * raw[name]}
        expected |= {f"{name}/gradient": pulls[name], f"{name}/share": pulls[name] / pulls.sum()}
    assert logged(cfg).to_dict() == pytest.approx(expected, rel=1e-4)


def test_training_is_bit_equal_with_and_without(composed: Compose) -> None:
    report = ["trainer.accumulate_grad_batches=2"]
    with_it = train(composed(*SET, *report, run="with"))
    without = train(composed(*SET, *report, "callbacks.scale_report=null", run="without"))
    assert sha256(with_it.folder / "student.safetensors") == sha256(without.folder / "student.safetensors")


def test_only_the_first_steps_are_measured(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    def counted(trainer, module):  # type: ignore[no-untyped-def]
        steps.append(trainer.global_step)
        return gradient_norms(trainer, module)

    monkeypatch.setattr(scale_report, "gradient_norms", counted)
    train(composed("callbacks.scale_report.steps=2", "trainer.accumulate_grad_batches=2"))
    assert steps == [0, 0, 1, 1]


@pytest.mark.parametrize("shown", [True, False])
def test_the_table_is_printed_unless_hushed(shown: bool, composed: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = composed(*SET, "callbacks.scale_report.steps=2")
    (Context().run if shown else copy_context().run)(train, cfg)
    printed = capsys.readouterr().out
    assert printed.count("Scale of the losses, first 2 steps") == int(shown)
    if shown:
        own = printed.split("Scale of the losses")[1]
        assert [own.count(f"│ {name} ") for name in WEIGHTS] == [1, 1, 1]
        assert f"{logged(cfg)['hint/gradient']:.4g}" in own


def test_it_warns_of_a_loss_that_is_not_heard(composed: Compose) -> None:
    with pytest.warns(UserWarning, match=r"loss\.hint has \S+, but task has \S+ .*Check loss\.hint\.weight"):
        train(composed("loss.hint.weight=1e-5"))


@pytest.mark.parametrize("weight", ["0", "{schedule: warmup, to: 1, epochs: 1000}"])
def test_a_loss_that_is_meant_to_be_still_is_none_to_warn_of(
    weight: str, composed: Compose, recwarn: pytest.WarningsRecorder
) -> None:
    cfg = composed(*SET, f"loss.hint.weight={weight}")
    train(cfg)
    assert logged(cfg)["hint/share"] < 0.01
    assert not [each for each in recwarn if "hardly reach the student" in str(each.message)]


def test_the_bound_is_a_hundred_times() -> None:
    assert unheard({"task": 0.99, "kd": 0.0099}) == ""
    assert unheard({}) == unheard({"task": 1.0}) == unheard({"task": 0.0, "kd": 0.0}) == ""
    assert unheard({"task": 0.001, "kd": 0.9}, ["kd"]) == "", "soft targets take the place of labels"
    assert "task has 0.001" in unheard({"task": 0.001, "kd": 0.002, "hint": 0.99}, ["kd"])
    assert "task has 0.001" in unheard({"task": 0.001, "hint": 0.99}, ["kd"])
    warning = unheard({"task": 0.5, "kd": 0.004, "at": 0.001, "rkd": 0.0, "dkd": 0.495})
    assert "loss.kd has 0.004 and loss.at has 0.001 and loss.rkd has 0, but task has 0.5" in warning
    assert "loss.dkd" not in warning


def test_figures_of_losses_without_gradient() -> None:
    assert figures(["task"], [torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[3.0, 0.0, 0.0]])]) == {
        "task": {"raw": 2.0, "weighted": 0.0, "gradient": 0.0, "share": 0.0}
    }


def test_a_compiled_student_is_known(composed: Compose) -> None:
    module = build(composed()).distiller
    assert is_measurable(module)
    module.student.net.compile(backend="eager")
    assert not is_measurable(module)


@pytest.mark.slow
def test_of_a_compiled_student_nothing_is_measured(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda net: compiled(net, backend="eager"))
    cfg = composed("compile=true")
    train(cfg)
    lines = pd.read_csv(Path(cfg.paths.run) / "metrics" / "version_0" / "metrics.csv")
    assert "train/loss" in lines
    assert lines.filter(like="scale/").empty


def test_norms_leave_no_trace_and_do_not_depend_on_the_scale_of_16_bits(composed: Compose) -> None:
    """A loss that does not reach the student has the norm 0."""
    parts = build(composed(*SET))
    module = parts.distiller
    found = {}
    for scale in (1.0, 2.0**10):
        scaler = SimpleNamespace(get_scale=lambda scale=scale: scale)
        trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler), world_size=1)
        total = module.training_step(parts.example, 0)["loss"]
        assert module.losses is not None
        module.losses.raw["still"] = torch.zeros(())
        found[scale] = gradient_norms(trainer, module)  # type: ignore[arg-type]
        assert all(parameter.grad is None for parameter in module.parameters())
    total.backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert found[1.0] == pytest.approx(found[2.0**10], rel=1e-6)
    assert found[1.0]["still"] == 0 < min(found[1.0][name] for name in WEIGHTS)
