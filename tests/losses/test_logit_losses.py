"""Losses on the scale of logits: logit_standardized_kd, which removes it, and logit_mse, which is nothing else."""

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from torch import Tensor

from distillery.losses.functional import kd, logit_mse, logit_standardized_kd
from distillery.losses.response.logit_mse import LogitMSE
from distillery.losses.signals import Signals
from fixtures import formulas
from fixtures.cases import each_case


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    student, teacher = 3 * torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    return student, teacher


@each_case("temperature", [1.0, 2.0])
@each_case("t_squared", [True, False])
def test_rows_of_standardized_kd(logits: tuple[Tensor, Tensor], temperature: float, t_squared: bool) -> None:
    def standardized(z: np.ndarray) -> np.ndarray:
        return (z - z.mean(1, keepdims=True)) / (1e-7 + z.std(1, ddof=1, keepdims=True))

    s, t = (softmax(standardized(x.numpy()) / temperature, axis=1) for x in logits)
    expected = rel_entr(t, s).sum(1) * (temperature**2 if t_squared else 1.0)
    rows = logit_standardized_kd(*logits, temperature, t_squared, reduction="none")
    np.testing.assert_allclose(rows.numpy(), expected, rtol=1e-10)
    assert logit_standardized_kd(*logits, temperature, t_squared).item() == pytest.approx(expected.mean(), rel=1e-10)


def test_scale_and_shift_of_the_student_do_not_matter(logits: tuple[Tensor, Tensor]) -> None:
    student, teacher = logits
    expected = logit_standardized_kd(student, teacher)
    torch.testing.assert_close(logit_standardized_kd(7 * student - 3, teacher), expected, rtol=1e-6, atol=0)
    assert not torch.isclose(kd(7 * student - 3, teacher), kd(student, teacher))


@each_case("constant", [0.0, 0.1, 1234.5])
def test_equal_logits_are_uniform_and_their_gradient_is_finite(constant: float) -> None:
    """Of 1234.5 in float32 the rounded mean differs, and what remains would be magnified to a deviation of 1."""
    teacher = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    student = torch.full((3, 7), constant, requires_grad=True)
    value = logit_standardized_kd(student, teacher)
    value.backward()
    uniform = kd(torch.zeros(3, 7), (teacher - teacher.mean(1, keepdim=True)) / teacher.std(1, keepdim=True), 2.0)
    torch.testing.assert_close(value, uniform)
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.any()
    assert logit_standardized_kd(teacher, student.detach()).isfinite()


def test_rows_of_mse(logits: tuple[Tensor, Tensor]) -> None:
    squares = (logits[0].numpy() - logits[1].numpy()) ** 2
    np.testing.assert_allclose(logit_mse(*logits, reduction="none").numpy(), squares.mean(1), rtol=1e-12)
    assert logit_mse(*logits).item() == pytest.approx(squares.mean(), rel=1e-12)


def test_mse_to_the_scaled_teacher(logits: tuple[Tensor, Tensor]) -> None:
    squares = (logits[0].numpy() - 0.3 * logits[1].numpy()) ** 2
    signals = Signals(logits[0]), Signals(logits[1])
    np.testing.assert_allclose(LogitMSE(scale=0.3)(*signals, {}).numpy(), squares.mean(1), rtol=1e-12)


def test_half_precision_does_not_overflow() -> None:
    student, teacher = torch.full((1, 2), 400.0).half(), torch.full((1, 2), -400.0).half()
    assert logit_mse(student, teacher).item() == 800.0**2


@formulas.plain("logit_standardized_kd", "s_logits", "t_logits")
def plain_logit_standardized_kd(x: formulas.Inputs) -> Tensor:
    def z(logits: Tensor) -> Tensor:
        return (logits - logits.mean(1, keepdim=True)) / (1e-7 + logits.std(1, keepdim=True))

    return 4 * formulas.divergence(formulas.p(z(x["t_logits"]), 2), formulas.p(z(x["s_logits"]), 2)).mean()


@formulas.plain("logit_mse", "s_logits", "t_logits")
def plain_logit_mse(x: formulas.Inputs) -> Tensor:
    return (x["s_logits"] - x["t_logits"]).pow(2).mean()
