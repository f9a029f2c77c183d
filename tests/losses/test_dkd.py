import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distillery.losses.functional import dkd, kd
from fixtures import formulas
from fixtures.cases import each_case


def parts_by_hand(student: list[float], teacher: list[float], target: int, t: float) -> tuple[float, float]:
    """(TCKD, NCKD) of one row, by the paper's equations 1 to 7, without T²."""

    def probabilities(logits: list[float]) -> list[float]:
        exponentials = [math.exp(z / t) for z in logits]
        return [e / sum(exponentials) for e in exponentials]

    p_s, p_t = probabilities(student), probabilities(teacher)
    tckd = p_t[target] * math.log(p_t[target] / p_s[target])
    tckd += (1 - p_t[target]) * math.log((1 - p_t[target]) / (1 - p_s[target]))
    nckd = 0.0
    for i in range(len(student)):
        if i != target:
            rest_s, rest_t = p_s[i] / (1 - p_s[target]), p_t[i] / (1 - p_t[target])
            nckd += rest_t * math.log(rest_t / rest_s)
    return tckd, nckd


@pytest.fixture
def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    student, teacher = 2 * torch.randn(2, 6, 5, dtype=torch.float64, generator=draw)
    return student, teacher, torch.tensor([0, 1, 2, 3, 4, 0])


@each_case("t_squared", [True, False])
def test_rows(rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor], t_squared: bool) -> None:
    student, teacher, target = rows
    values = dkd(*rows, alpha=0.7, beta=3.0, temperature=2.0, t_squared=t_squared, reduction="none")
    expected = []
    for s, t, y in zip(student.tolist(), teacher.tolist(), target.tolist(), strict=True):
        tckd, nckd = parts_by_hand(s, t, y, 2.0)
        expected.append((0.7 * tckd + 3.0 * nckd) * (4.0 if t_squared else 1.0))
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-10)


def test_coupled_weights_give_kd(rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    """KD = TCKD + (1 - the teacher's target probability) · NCKD: equation 6."""
    student, teacher, target = rows
    of_rest = 1 - (teacher / 4.0).softmax(-1).gather(1, target[:, None]).squeeze(1)
    tckd = dkd(*rows, alpha=1.0, beta=0.0, reduction="none")
    nckd = dkd(*rows, alpha=0.0, beta=1.0, reduction="none")
    torch.testing.assert_close(tckd + of_rest * nckd, kd(student, teacher, reduction="none"))


def test_confident_student_stays_finite() -> None:
    """log(softmax), as the reference has it, is -inf here."""
    target = torch.tensor([0, 1])
    student = torch.tensor([[1e4, 0.0, -1e4], [1e4, 0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 1.0, 2.0], [-1e4, 0.0, 1e4]])
    assert torch.isinf(F.softmax(student, 1).log()).any()
    value = dkd(student, teacher, target, temperature=1.0)
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.any()


def test_certain_target_does_not_hide_the_rest() -> None:
    """The rest's probabilities keep float32's precision where the target's logit is 10 000 above them."""
    rest_student, rest_teacher = [0.3, -0.2, 1.1], [1.0, 0.0, -1.0]
    value = dkd(
        torch.tensor([[1e4, *rest_student]]),
        torch.tensor([[1e4, *rest_teacher]]),
        torch.tensor([0]),
        beta=1.0,
        temperature=1.0,
    )
    expected = kd(torch.tensor([rest_student]), torch.tensor([rest_teacher]), temperature=1.0)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)


def test_two_classes_have_no_rest() -> None:
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 2, dtype=torch.float64, generator=draw)
    target = torch.tensor([0, 1, 0, 1])
    torch.testing.assert_close(dkd(student, teacher, target), kd(student, teacher))


@formulas.plain("dkd", "s_logits", "t_logits", "target")
def plain_dkd(x: formulas.Inputs) -> Tensor:
    y = formulas.one_hot(x)
    s, t = formulas.p(x["s_logits"], 4), formulas.p(x["t_logits"], 4)
    binary = [torch.stack([(q * y).sum(1), (q * (1 - y)).sum(1)], 1) for q in (t, s)]
    rest = [formulas.p(x[name] / 4 - 1000 * y) for name in ("t_logits", "s_logits")]
    among = (rest[0] * (rest[0].clamp_min(1e-30).log() - rest[1].clamp_min(1e-30).log())).sum(1)
    return 16 * (formulas.divergence(*binary) + 8 * among).mean()
