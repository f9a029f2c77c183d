import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import Tensor

from distillery.losses.functional import kd
from fixtures import formulas
from fixtures.cases import each_case


def by_hand(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> np.ndarray:
    """KL(teacher ‖ student) of each row, without T²."""
    s, t = student.double().numpy() / temperature, teacher.double().numpy() / temperature
    p = softmax(t, axis=-1)
    return (p * (log_softmax(t, axis=-1) - log_softmax(s, axis=-1))).sum(-1)


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return tuple(3 * torch.randn(2, 5, 7, dtype=torch.float64, generator=draw))


@each_case("temperature", [1.0, 4.0])
@each_case("t_squared", [True, False])
def test_rows(logits: tuple[torch.Tensor, torch.Tensor], temperature: float, t_squared: bool) -> None:
    rows = kd(*logits, temperature=temperature, t_squared=t_squared, reduction="none")
    expected = by_hand(*logits, temperature) * (temperature**2 if t_squared else 1.0)
    np.testing.assert_allclose(rows.numpy(), expected, rtol=1e-12)
    assert kd(*logits, temperature, t_squared=t_squared).item() == pytest.approx(expected.mean(), rel=1e-12)


def test_t_squared_keeps_the_gradient_from_vanishing(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    """At high temperature the gradient tends to (centred student - centred teacher) / (N·C): equation 4."""
    student, teacher = logits[0].clone().requires_grad_(), logits[1]
    kd(student, teacher, temperature=1e4).backward()
    centred = [x - x.mean(-1, keepdim=True) for x in (student.detach(), teacher)]
    torch.testing.assert_close(student.grad, (centred[0] - centred[1]) / student.numel(), rtol=1e-2, atol=1e-4)


def test_masked_tokens_do_not_count() -> None:
    draw = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 3, 4, 6, dtype=torch.float64, generator=draw)
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    kept = mask.bool()
    expected = 4.0 * by_hand(student[kept], teacher[kept], 2.0)
    student.requires_grad_()
    value = kd(student, teacher, 2.0, mask=mask)
    assert value.item() == pytest.approx(expected.mean(), rel=1e-12)
    rows = kd(student, teacher, 2.0, mask=mask, reduction="none")
    assert rows.shape == mask.shape
    np.testing.assert_allclose(rows[kept].detach().numpy(), expected, rtol=1e-12)
    assert not rows[~kept].any()
    (gradient,) = torch.autograd.grad(value, student)
    assert not gradient[~kept].any()
    assert gradient[kept].any(dim=-1).all()


def test_nothing_that_counts_gives_zero() -> None:
    student = torch.randn(2, 3, 4, requires_grad=True)
    for value in (
        kd(student, torch.randn(2, 3, 4), mask=torch.zeros(2, 3)),
        kd(student[:0, 0], torch.randn(0, 4)),
    ):
        (gradient,) = torch.autograd.grad(value, student)
        assert value.item() == 0
        assert not gradient.any()


def test_wrong_arguments_are_refused() -> None:
    logits = torch.randn(4, 3)
    with pytest.raises(ValueError, match="reduction='sum'"):
        kd(logits, logits, reduction="sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="differ in shape"):
        kd(logits.view(2, 2, 3), logits.view(2, 2, 3), mask=torch.ones(2, 1))


@formulas.plain("kd", "s_logits", "t_logits")
def plain_kd(x: formulas.Inputs) -> Tensor:
    return 16 * formulas.divergence(formulas.p(x["t_logits"], 4), formulas.p(x["s_logits"], 4)).mean()
