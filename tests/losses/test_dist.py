import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import pearsonr
from torch import Tensor

from distillery.losses.functional import dist
from fixtures import formulas
from fixtures.cases import each_case


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    student, teacher = 2 * torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return student, teacher


@each_case(("beta", "gamma", "temperature"), [(1.0, 0.0, 1.0), (0.0, 3.0, 1.0), (2.0, 0.5, 2.0)])
@each_case("t_squared", [True, False])
def test_correlations(
    logits: tuple[Tensor, Tensor], beta: float, gamma: float, temperature: float, t_squared: bool
) -> None:
    """Against scipy's Pearson correlations, which have no 1e-8 in the denominator."""
    s, t = (softmax(x.numpy() / temperature, axis=1) for x in logits)
    inter = np.mean([1 - pearsonr(s[i], t[i]).statistic for i in range(6)])
    intra = np.mean([1 - pearsonr(s[:, c], t[:, c]).statistic for c in range(5)])
    expected = (beta * inter + gamma * intra) * (temperature**2 if t_squared else 1.0)
    value = dist(*logits, beta, gamma, temperature, t_squared)
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_probabilities_may_differ_where_they_correlate() -> None:
    """A student that mixes the teacher with uniform noise of one size is right: only the relation counts."""
    teacher = softmax(np.random.default_rng(0).normal(size=(6, 5)), axis=1)
    student = 0.3 * teacher + 0.7 / 5
    assert dist(torch.tensor(student).log(), torch.tensor(teacher).log()).item() == pytest.approx(0, abs=1e-5)


def test_what_agreement_leaves_is_the_constant_of_the_denominator(logits: tuple[Tensor, Tensor]) -> None:
    value = dist(logits[0], logits[0])
    assert 0 < value.item() < 1e-5


@each_case("batch", [0, 1])
def test_a_single_row_has_no_relation_to_others(batch: int) -> None:
    """What it costs is constant, γ; the relation between its classes is still compared."""
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, batch, 5, dtype=torch.float64, generator=draw)
    student.requires_grad_()
    value = dist(student, teacher, beta=0.0, gamma=3.0)
    value.backward()
    assert value.item() == pytest.approx(3.0)
    assert student.grad is not None
    assert not student.grad.any()


def test_student_that_gives_every_class_the_same_is_finite() -> None:
    student = torch.zeros(4, 5, requires_grad=True)
    value = dist(student, torch.randn(4, 5))
    value.backward()
    assert value.item() == pytest.approx(2.0)
    assert student.grad is not None
    assert student.grad.isfinite().all()


def pearson(a: Tensor, b: Tensor) -> Tensor:
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (formulas.unit(a) * formulas.unit(b)).sum(1)


@formulas.plain("dist", "s_logits", "t_logits")
def plain_dist(x: formulas.Inputs) -> Tensor:
    s, t = formulas.p(x["s_logits"]), formulas.p(x["t_logits"])
    return (1 - pearson(s, t)).mean() + (1 - pearson(s.T, t.T)).mean()
