import math

import numpy as np
import pytest
import torch
from torch import Tensor

from distillery.losses.functional import pkt
from distillery.losses.relation.pkt import PKT
from distillery.losses.signals import Signals
from fixtures import formulas
from fixtures.cases import each_case
from fixtures.random import draw


def by_hand(student: Tensor, teacher: Tensor) -> float:
    """Mean over pairs of p log(p / q), without the authors' constants of 1e-7."""

    def rows(features: Tensor) -> np.ndarray:
        x = features.flatten(1).numpy()
        nearness = np.array([[(1 + a @ b / math.sqrt((a @ a) * (b @ b))) / 2 for b in x] for a in x])
        return nearness / nearness.sum(1, keepdims=True)

    p, q = rows(teacher), rows(student)
    return float((p * np.log(p / q)).mean())


@each_case("shape", [(6, 4), (5, 3, 2, 2)])
def test_probabilities_of_neighbours(shape: tuple[int, ...]) -> None:
    student, teacher = draw(*shape), draw(shape[0], 7, seed=1)
    assert pkt(student, teacher).item() == pytest.approx(by_hand(student, teacher), rel=1e-5)


def test_only_directions_count() -> None:
    student, teacher = draw(6, 4), draw(6, 7, seed=1)
    scaled = student * torch.arange(1.0, 7).unsqueeze(1)
    torch.testing.assert_close(pkt(scaled, 100 * teacher), pkt(student, teacher), rtol=1e-5, atol=0)


def test_sample_without_features_is_as_near_to_all_and_gets_no_gradient() -> None:
    student, teacher = draw(5, 3).float(), draw(5, 4, seed=1).float()
    student[2] = 0
    student.requires_grad_()
    value = pkt(student, teacher)
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert not student.grad[2].any()
    assert student.grad.abs().max() < 1


@each_case("seed", range(4))
def test_opposite_samples_have_a_finite_loss(seed: int) -> None:
    """Their probability is 0, which rounding can bring below: of many channels by more than the authors' 1e-7."""
    features = 100 * torch.rand(1, 50_000, generator=torch.Generator().manual_seed(seed))
    student = torch.cat([features, -features]).requires_grad_()
    value = pkt(student, draw(2, 3))
    value.backward()
    assert value > 0
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@each_case("batch", [0, 1])
def test_too_few_samples_have_no_relation(batch: int) -> None:
    student = draw(batch, 4).requires_grad_()
    value = pkt(student, draw(batch, 3, seed=1))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)


def test_batches_must_agree() -> None:
    with pytest.raises(ValueError, match="student has 3 samples, teacher 4"):
        pkt(draw(3, 2), draw(4, 2))


def test_term_sums_its_pairs() -> None:
    student = {"a": draw(5, 4), "b": draw(5, 3, 2, 2)}
    teacher = {"x": draw(5, 2, seed=1), "y": draw(5, 6, seed=2)}
    term = PKT(layers={"a": "x", "b": "y"})
    expected = pkt(student["a"], teacher["x"]) + pkt(student["b"], teacher["y"])
    torch.testing.assert_close(term(Signals(draw(5, 2), student), Signals(draw(5, 2), teacher), {}), expected)
    assert PKT().layers == {"embedding": "embedding"}


@formulas.plain("pkt", "s_vector", "t_vector")
def plain_pkt(x: formulas.Inputs) -> Tensor:
    similar = [(formulas.unit(e) @ formulas.unit(e).T + 1) / 2 for e in (x["s_vector"], x["t_vector"])]
    s, t = (m / m.sum(1, keepdim=True) for m in similar)
    return (t * ((t + 1e-7) / (s + 1e-7)).log()).mean()
