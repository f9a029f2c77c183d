"""A loss with several teachers, as the config names them and as a run trains with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from distillery.config.check import check
from distillery.config.several_teachers import per_teacher
from distillery.core.errors import UserError
from distillery.losses.several import Several
from distillery.models.cnn import SmallCNN
from distillery.models.weights import save_weights
from distillery.runs.plan import term_table
from distillery.runs.run import train
from distillery.training.schedules import Progress
from fixtures.building import build
from fixtures.cases import each_case
from fixtures.composing import Compose
from reference.several_teachers import cross_entropies

LAYERS = {"a": "x", "b.c": "y"}


@each_case(
    ("given", "expected"),
    [
        ({"teacher": "main", "layers": LAYERS}, {"main": LAYERS}),
        ({"teacher": ["main"], "layers": "auto"}, {"main": "auto"}),
        ({"teacher": ["main", "b"], "layers": LAYERS}, {"main": LAYERS, "b": LAYERS}),
        ({"teacher": ["main", "b"], "layers": None}, {"main": None, "b": None}),
        ({"teacher": ["main", "b"], "layers": {"main": LAYERS, "b": {"z": "z"}}}, {"main": LAYERS, "b": {"z": "z"}}),
        ({"teacher": ["main", "b"], "layers": {"main": "auto", "b": LAYERS}}, {"main": "auto", "b": LAYERS}),
        ({"teacher": ["main", "b"], "layers": {"main": "auto", "b": "auto"}}, {"main": "auto", "b": "auto"}),
        ({"teacher": ["a", "b.c"], "layers": LAYERS}, {"a": "x", "b.c": "y"}),  # the teachers' names
        ({"teacher": "main", "layers": {"main": {"z": "z"}}}, {"main": {"z": "z"}}),
    ],
)
def test_layers_are_those_of_each_teacher(given: dict[str, Any], expected: dict[str, Any]) -> None:
    found = per_teacher("loss.hint", given | {"weight": 2, "combine": "mean" if len(expected) > 1 else None})
    assert found == [{"teacher": name, "layers": layers} for name, layers in expected.items()]


@each_case(
    ("given", "message"),
    [
        ({"teacher": []}, r"^loss\.kd\.teacher=\[\]: name one teacher, or several"),
        ({"teacher": ["main", "main"]}, r"^loss\.kd\.teacher=\['main', 'main'\]: .* each once"),
        ({"teacher": "main", "combine": "best"}, r"^loss\.kd\.combine=best wants several teachers: loss\.kd\.teacher="),
        (
            {"teacher": ["main", "b"], "layers": {"main": {}, "c": {}}},
            r"^loss\.kd\.layers: this loss has no teacher 'c'",
        ),
        ({"teacher": ["main", "b"], "layers": {"main": {}}}, r"^loss\.kd\.layers says nothing of 'b'"),
    ],
)
def test_what_cannot_be_said(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        per_teacher("loss.kd", given)


@pytest.fixture
def composed(compose_train: Compose, tmp_path: Path) -> Callable[..., DictConfig]:
    """A student and two untrained teachers of other widths on the digits."""
    given = [
        "student.net.widths=[4,4]",
        "data.train_size=100",
        "data.batch_size=25",
        "logger=none",
        "trainer.max_epochs=1",
    ]
    for seed, (name, widths) in enumerate({"main": (4, 6), "b": (3, 5)}.items()):
        torch.manual_seed(seed)
        save_weights(SmallCNN(10, 1, widths), tmp_path / f"{name}.safetensors")
        given += [
            "model/teacher=cnn" if name == "main" else f"+model/teacher@teachers.{name}=cnn",
            f"teachers.{name}.net.widths={list(widths)}",
            f"teachers.{name}.weights={tmp_path / name}.safetensors",
        ]
    return lambda *more, run="run": compose_train(*given, *more, run=run)


BOTH = ["loss.kd.teacher=[main,b]", "loss/feature=[hint]", "loss.hint.teacher=[main,b]", "loss.hint.weight=1"]


def test_each_teacher_has_projectors_and_layers_of_its_own(composed: Callable[..., DictConfig]) -> None:
    layers = "loss.hint.layers={main: {stages.0: stages.1}, b: {stages.1: stages.1}}"
    cfg = composed(*BOTH, layers, "+loss.hint.combine=best")
    check(cfg)
    parts = build(cfg)
    hint = parts.distiller.objective.terms["hint"]
    assert isinstance(hint, Several)
    shapes = {name: tuple(one.projectors[0].weight.shape[:2]) for name, one in hint.by_teacher.items()}
    assert shapes == {"main": (6, 4), "b": (5, 4)}
    assert {name: one.taps for name, one in hint.by_teacher.items()} == {
        "main": {"stages.0": "stages.1"},
        "b": {"stages.1": "stages.1"},
    }
    trained = {name for name, _ in parts.distiller.trainable()}
    assert len([name for name in trained if name.startswith("objective.terms.hint.copies.")]) == 4
    columns = [list(column.cells) for column in term_table(parts).columns]
    assert columns[0] == ["task", "kd, mean of the teachers", "", "hint, best of the teachers", ""]
    assert columns[3] == ["labels", "main: logits ", "b: logits ", "main: stages.1 6×4×4", "b: stages.1 5×4×4"]


def test_losses_of_two_teachers_in_a_run(composed: Callable[..., DictConfig]) -> None:
    """By hand: the mean of two divergences, and hints of which each sample's better teacher counts."""
    parts = build(composed(*BOTH, "+loss.hint.combine=best", "data.augment=null"))
    distiller, batch = parts.distiller, next(iter(parts.data.train_dataloader()))
    terms = distiller.training_step(batch, 0)["terms"]
    ours = distiller.student(batch)
    theirs = {name: teacher(batch) for name, teacher in distiller.teachers.items()}

    def divergence(teacher: Tensor) -> float:
        p, q = (teacher / 4).softmax(1), (ours.logits / 4).softmax(1)
        return (p * (p / q).log()).sum(1).mean().item() * 16

    expected = sum(divergence(each.logits) for each in theirs.values()) / 2
    assert terms["kd"].item() == pytest.approx(expected, rel=1e-4)
    hint = distiller.objective.terms["hint"]
    entropies = cross_entropies(torch.stack([each.logits for each in theirs.values()]), batch["target"])
    total = 0.0
    for sample, which in enumerate(entropies.argmin(0)):
        name = ["main", "b"][which]
        ((tap, other),) = hint.by_teacher[name].taps.items()
        projected = hint.by_teacher[name].projectors[0](ours.layers[tap][sample : sample + 1])
        total += (projected - theirs[name].layers[other][sample : sample + 1]).square().mean().item()
    assert len(set(entropies.argmin(0))) == 2
    assert terms["hint"].item() == pytest.approx(total / 25, rel=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Teacher '(main|b)' scores", "ignore:Some losses hardly reach")
def test_a_run_with_a_random_teacher_repeats_bit_for_bit(composed: Callable[..., DictConfig]) -> None:
    random = [*BOTH, "+loss.kd.combine=random", "+loss.hint.combine=random"]
    first, second = (train(composed(*random, run=run)).record for run in ("run", "again"))
    assert first.student_sha256 == second.student_sha256
    assert first.method == "kd+hint"
    assert train(composed(*BOTH, run="mean")).record.student_sha256 != first.student_sha256


@each_case(
    ("more", "message"),
    [
        (["loss.kd.teacher=[main,c]"], r"^loss\.kd\.teacher: no teacher 'c'"),
        (["loss.kd.teacher=[main,mian]"], r"^loss\.kd\.teacher: no teacher 'mian'\. Did you mean 'main'"),
        (["loss.kd.teacher=[main,b]", "+loss.kd.combine=bset"], r"^loss\.kd\.combine=bset.*Did you mean 'best'"),
        (["loss.kd.teacher=[main,b]", "+loss.kd.combin=best"], r"^Unknown setting 'loss\.kd\.combin'"),
        (["+loss.kd.combine=best"], r"^loss\.kd\.combine=best wants several teachers"),
        (
            ["loss/relation=[rkd]", "loss.rkd.teacher=[main,b]", "+loss.rkd.combine=best"],
            r"^loss\.rkd\.combine=best weights the teachers per sample, and rkd",
        ),
    ],
)
def test_a_wrong_config_is_refused(more: list[str], message: str, composed: Callable[..., DictConfig]) -> None:
    def checked() -> None:
        cfg = composed(*more)
        check(cfg)
        build(cfg)

    with pytest.raises(UserError, match=message):
        checked()


def test_a_schedule_is_of_every_copy(composed: Callable[..., DictConfig]) -> None:
    schedule = "{schedule: linear, start: 4, end: 2, epochs: 2}"
    parts = build(composed(*BOTH, f"loss.kd.temperature={schedule}", f"loss.kd.weight={schedule}"))
    objective = parts.distiller.objective
    objective.follow(Progress(step=4, steps_per_epoch=4))
    term = objective.terms["kd"]
    assert isinstance(term, Several)
    assert [(one.weight, one.temperature) for one in term.by_teacher.values()] == [(3, 3), (3, 3)]
    assert term.weight == 3
    assert objective.changing() == {"kd.temperature": 3, "kd.weight": 3}
