"""Independent labels: values against SciPy, the identity with kd of two classes, and the gradient."""

import numpy as np
import pytest
import torch
from scipy.special import expit, rel_entr
from torch import Tensor

from distillery.losses.functional import bernoulli_kd, kd
from fixtures import formulas
from fixtures.cases import each_case


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    student, teacher = 3 * torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return student, teacher


@each_case("temperature", [1.0, 4.0])
@each_case("t_squared", [True, False])
def test_rows(logits: tuple[Tensor, Tensor], temperature: float, t_squared: bool) -> None:
    s, t = (expit(each.numpy() / temperature) for each in logits)
    expected = (rel_entr(t, s) + rel_entr(1 - t, 1 - s)).mean(1) * (temperature**2 if t_squared else 1.0)
    rows = bernoulli_kd(*logits, temperature, t_squared, reduction="none")
    np.testing.assert_allclose(rows.numpy(), expected, rtol=1e-10)
    assert bernoulli_kd(*logits, temperature, t_squared).item() == pytest.approx(expected.mean(), rel=1e-10)


@each_case("temperature", [1.0, 4.0])
def test_one_label_is_kd_of_two_classes(logits: tuple[Tensor, Tensor], temperature: float) -> None:
    one = [each[:, :1] for each in logits]
    two = [torch.cat([torch.zeros_like(each), each], 1) for each in one]
    found = bernoulli_kd(one[0], one[1], temperature, reduction="none")
    torch.testing.assert_close(found, kd(two[0], two[1], temperature, reduction="none"), rtol=1e-12, atol=1e-14)


def test_the_gradient_is_the_difference_of_the_probabilities(logits: tuple[Tensor, Tensor]) -> None:
    student, teacher = logits[0].clone().requires_grad_(), logits[1]
    bernoulli_kd(student, teacher, temperature=2.0).backward()
    expected = 2.0 * ((student / 2).sigmoid() - (teacher / 2).sigmoid()) / student.numel()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, expected.detach())


def test_the_number_of_labels_does_not_scale_it(logits: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(bernoulli_kd(*(each.repeat(1, 3) for each in logits)), bernoulli_kd(*logits))


@formulas.plain("bernoulli_kd", "s_logits", "t_logits")
def plain_bernoulli_kd(x: formulas.Inputs) -> Tensor:
    s, t = x["s_logits"].sigmoid(), x["t_logits"].sigmoid()
    return (t * (t / s).log() + (1 - t) * ((1 - t) / (1 - s)).log()).mean()
