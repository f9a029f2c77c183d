"""The objective against sums written out by hand in NumPy, and where its gradient goes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from distillery.core.errors import UserError
from distillery.losses.feature.hint import Hint
from distillery.losses.relation.rkd import RKD
from distillery.losses.response.kd import KD
from distillery.losses.signals import Signals
from distillery.losses.term import Term
from distillery.models.adapters import ImageAdapter
from distillery.models.cnn import SmallCNN
from distillery.models.taps.network import Network
from distillery.models.weights import save_weights
from distillery.tasks.classification import Classification
from distillery.teachers.frozen import Teacher
from distillery.training.objective import Losses, Objective
from distillery.training.wiring import wire
from fixtures.building import build
from fixtures.composing import Compose

CLASSES = 5
TEMPERATURE = 3.0


@pytest.fixture
def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.rand(7, 1, 8, 8, generator=generator, dtype=torch.float64),
        "target": torch.randint(CLASSES, (7,), generator=generator),
        "index": torch.arange(7),
    }


@pytest.fixture
def student() -> Network:
    torch.manual_seed(1)
    return Network(SmallCNN(CLASSES, 1, (4, 6)), ImageAdapter([0.5], [0.25]), name="student").double()


@pytest.fixture
def teachers() -> dict[str, Teacher]:
    made = {}
    for seed, name in enumerate(["main", "second"], start=2):
        torch.manual_seed(seed)
        made[name] = Teacher(SmallCNN(CLASSES, 1, (8, 10)), ImageAdapter([0.4], [0.2]), name=name)
        made[name].double()
    return made


def objective(
    task: Classification,
    terms: Mapping[str, Term],
    student: Network,
    teachers: Mapping[str, Teacher],
    batch: Mapping[str, Tensor],
) -> Objective:
    wire(terms, student, teachers, batch)
    return Objective(task, terms).double()


def losses_of(
    made: Objective, student: Network, teachers: Mapping[str, Teacher], batch: Mapping[str, Tensor]
) -> Losses:
    return made(student(batch), {name: teacher(batch) for name, teacher in teachers.items()}, batch)


def log_softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    scaled = logits / temperature
    scaled = scaled - scaled.max(1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(1, keepdims=True))


def cross_entropy(logits: np.ndarray, target: np.ndarray, smoothing: float) -> float:
    """Against (1 - ε) of the label and ε / C of every class."""
    wanted = (1 - smoothing) * np.eye(CLASSES)[target] + smoothing / CLASSES
    return float(-(wanted * log_softmax(logits)).sum(1).mean())


def kd_loss(student: np.ndarray, teacher: np.ndarray) -> float:
    ours, theirs = log_softmax(student, TEMPERATURE), log_softmax(teacher, TEMPERATURE)
    return float((np.exp(theirs) * (theirs - ours)).sum(1).mean()) * TEMPERATURE**2


def logits_of(network: Network, batch: Mapping[str, Tensor]) -> np.ndarray:
    return network(batch).logits.detach().numpy()


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_total_is_the_weighted_sum(
    smoothing: float, student: Network, teachers: dict[str, Teacher], batch: dict[str, Tensor]
) -> None:
    hint = Hint(2.5, layers={"stages.1": "stages.1"})
    terms = {"kd": KD(0.7, temperature=TEMPERATURE), "hint": hint}
    made = objective(Classification(0.4, smoothing), terms, student, teachers, batch)
    losses = losses_of(made, student, teachers, batch)

    ours, theirs = logits_of(student, batch), logits_of(teachers["main"], batch)
    features = student(batch).layers["stages.1"].detach().numpy()
    convolution = hint.projectors[0]
    weight, bias = convolution.weight.detach().numpy()[:, :, 0, 0], convolution.bias.detach().numpy()
    projected = np.einsum("oc,bchw->bohw", weight, features) + bias[:, None, None]
    expected = {
        "task": cross_entropy(ours, batch["target"].numpy(), smoothing),
        "kd": kd_loss(ours, theirs),
        "hint": float(((projected - teachers["main"](batch).layers["stages.1"].numpy()) ** 2).mean()),
    }
    assert min(expected.values()) > 0.01  # otherwise a term left out would go unnoticed
    expected["loss"] = 0.4 * expected["task"] + 0.7 * expected["kd"] + 2.5 * expected["hint"]
    assert {name: value.item() for name, value in losses.terms.items()} == pytest.approx(expected, rel=1e-6)
    assert losses.total.item() == pytest.approx(expected["loss"], rel=1e-6)
    assert losses.total.requires_grad
    assert not any(value.requires_grad for value in losses.terms.values())


def test_each_loss_learns_from_its_own_teacher(
    student: Network, teachers: dict[str, Teacher], batch: dict[str, Tensor]
) -> None:
    terms = {"kd": KD(temperature=TEMPERATURE), "kd_b": KD(2.0, teacher="second", temperature=TEMPERATURE)}
    losses = losses_of(objective(Classification(0.0), terms, student, teachers, batch), student, teachers, batch)
    ours = logits_of(student, batch)
    first, second = (kd_loss(ours, logits_of(teachers[name], batch)) for name in ("main", "second"))
    assert abs(first - second) > 0.01
    assert losses.terms["kd"].item() == pytest.approx(first)
    assert losses.terms["kd_b"].item() == pytest.approx(second)
    assert losses.total.item() == pytest.approx(first + 2 * second)


class Rows(KD):
    """Row i has the value i + 1."""

    def forward(self, student: Signals, teacher: Signals, target: Tensor | None) -> Tensor:
        return torch.arange(1.0, 1 + len(student.logits), requires_grad=True)


class Whole(RKD):
    """A scalar of the batch."""

    def forward(self, student: Signals, teacher: Signals, target: Tensor | None) -> Tensor:
        return torch.tensor(10.0, requires_grad=True)


def signals_of(rows: int) -> Signals:
    return Signals(torch.zeros(rows, CLASSES))


def test_only_losses_of_rows_are_divided_by_the_rows() -> None:
    made = Objective(Classification(0.0), {"rows": Rows(), "whole": Whole(layers={"embedding": "embedding"})})
    losses = made(signals_of(4), {"main": signals_of(4)}, {"target": torch.zeros(4, dtype=torch.int64)})
    assert losses.terms["rows"].item() == (1 + 2 + 3 + 4) / 4
    assert losses.terms["whole"].item() == 10
    assert losses.terms["task"].item() == pytest.approx(np.log(CLASSES))


def test_shares_of_ranks_average_to_the_mean_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = [5, 2]
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: len(shares))
    monkeypatch.setattr(dist, "all_reduce", lambda rows: rows.fill_(sum(shares)))
    made = Objective(Classification(0.0), {"rows": Rows()})
    found = [
        made(
            signals_of(rows), {"main": signals_of(rows)}, {"target": torch.zeros(rows, dtype=torch.int64)}
        ).total.item()
        for rows in shares
    ]
    assert np.mean(found) == pytest.approx(((1 + 2 + 3 + 4 + 5) + (1 + 2)) / 7)


def test_gradient_reaches_student_and_projector_only(
    student: Network, teachers: dict[str, Teacher], batch: dict[str, Tensor]
) -> None:
    hint = Hint(layers={"stages.1": "stages.1"})
    made = objective(Classification(0.5), {"kd": KD(), "hint": hint}, student, teachers, batch)
    losses_of(made, student, teachers, batch).total.backward()
    reached = [*student.parameters(), *hint.parameters()]
    assert len([*hint.parameters()]) == 2
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in reached)
    for teacher in teachers.values():
        assert all(parameter.grad is None for parameter in teacher.parameters())
    assert {id(parameter) for parameter in made.parameters()} == {id(parameter) for parameter in hint.parameters()}


def test_a_weight_of_zero_contributes_nothing(
    student: Network, teachers: dict[str, Teacher], batch: dict[str, Tensor]
) -> None:
    def gradient(terms: dict[str, Term]) -> tuple[float, Tensor]:
        student.zero_grad()
        losses = losses_of(objective(Classification(0.5), terms, student, teachers, batch), student, teachers, batch)
        losses.total.backward()
        return losses.total.item(), torch.cat([parameter.grad.flatten() for parameter in student.parameters()])

    alone, with_zero = gradient({}), gradient({"kd": KD(0.0)})
    assert with_zero[0] == alone[0]
    assert torch.equal(with_zero[1], alone[1])
    assert not torch.equal(gradient({"kd": KD(1.0)})[1], alone[1])


def test_unknown_teacher_is_refused_with_the_nearest(
    student: Network, teachers: dict[str, Teacher], batch: dict[str, Tensor]
) -> None:
    with pytest.raises(UserError, match=r"loss\.kd\.teacher: no teacher 'secnd'\. Did you mean 'second'\?"):
        wire({"kd": KD(teacher="secnd")}, student, teachers, batch)


@pytest.mark.parametrize("weight", [np.inf, -np.inf, np.nan, "heavy", "1.0", None, True, [1.0]])
def test_a_weight_that_is_no_finite_number_is_refused(weight: Any) -> None:
    with pytest.raises(UserError, match=r"^task\.weight=.*: it must be a finite number\.$"):
        Objective(Classification(weight), {})
    with pytest.raises(UserError, match=r"^loss\.kd_b\.weight=.*: it must be a finite number\.$"):
        Objective(Classification(), {"kd": KD(), "kd_b": KD(weight)})


@pytest.mark.parametrize("weight", [np.inf, "heavy"])
def test_a_wrong_weight_is_refused_before_training(weight: Any, compose_train: Compose, tmp_path: Path) -> None:
    file = tmp_path / "teacher.safetensors"
    save_weights(SmallCNN(10, 1, (4, 4)), file)
    cfg = compose_train("model/teacher=cnn", "teachers.main.net.widths=[4,4]", f"teachers.main.weights={file}")
    build(cfg)
    cfg.loss.kd.weight = weight
    with pytest.raises(UserError, match=r"loss\.kd\.weight=(inf|heavy): it must be a finite number"):
        build(cfg)


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, float("nan")])
def test_label_smoothing_is_a_share(smoothing: float) -> None:
    with pytest.raises(UserError, match=r"^label_smoothing=.* between 0 and 1"):
        Classification(label_smoothing=smoothing)
