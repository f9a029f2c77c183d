"""Cross-entropies to soft labels that the hard label changes: nkd, wsld; and ofa on logits alone."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distillery.losses.functional import nkd, ofa, wsld
from fixtures import formulas
from fixtures.cases import each_case

Rows = tuple[Tensor, Tensor, Tensor]
TARGET = [0, 1, 2, 3, 4, 0]


def probabilities(logits: list[float], t: float = 1.0) -> list[float]:
    exponentials = [math.exp(z / t) for z in logits]
    return [e / sum(exponentials) for e in exponentials]


def nkd_by_hand(s: list[float], t: list[float], y: int, gamma: float, temperature: float, scale: float) -> float:
    loss = -probabilities(t)[y] * math.log(probabilities(s)[y])
    rest = [probabilities(z[:y] + z[y + 1 :], temperature) for z in (s, t)]
    return loss - gamma * scale * sum(b * math.log(a) for a, b in zip(*rest, strict=True))


def wsld_by_hand(s: list[float], t: list[float], y: int, temperature: float, scale: float) -> float:
    ratio = math.log(probabilities(s)[y]) / (math.log(probabilities(t)[y]) - 1e-7)
    soft = zip(probabilities(t, temperature), probabilities(s, temperature), strict=True)
    return -(1 - math.exp(-ratio)) * scale * sum(b * math.log(a) for b, a in soft)


def ofa_by_hand(s: list[float], t: list[float], y: int, eps: float, temperature: float, scale: float) -> float:
    p_s, p_t = probabilities(s, temperature), probabilities(t, temperature)
    loss = 0.0
    for c in range(len(s)):
        hot = float(c == y)
        loss -= ((p_t[c] + hot) ** eps - hot) * math.log(p_s[c])
    return scale * loss


CASES: list[tuple[Callable[..., Tensor], Callable[..., float], dict[str, float]]] = [
    (nkd, nkd_by_hand, {"gamma": 1.5, "temperature": 1.0}),
    (nkd, nkd_by_hand, {"gamma": 0.5, "temperature": 3.0}),
    (wsld, wsld_by_hand, {"temperature": 1.0}),
    (wsld, wsld_by_hand, {"temperature": 4.0}),
    (ofa, ofa_by_hand, {"eps": 1.4, "temperature": 1.0}),
    (ofa, ofa_by_hand, {"eps": 0.6, "temperature": 3.0}),
]


@pytest.fixture
def rows() -> Rows:
    student, teacher = 2 * torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return student, teacher, torch.tensor(TARGET)


@each_case(("loss", "by_hand", "arguments"), CASES)
@each_case("t_squared", [True, False])
def test_rows(
    rows: Rows,
    loss: Callable[..., Tensor],
    by_hand: Callable[..., float],
    arguments: dict[str, float],
    t_squared: bool,
) -> None:
    scale = arguments["temperature"] ** 2 if t_squared else 1.0
    given = zip(*(x.tolist() for x in rows), strict=True)
    expected = np.array([by_hand(*row, **arguments, scale=scale) for row in given])
    values = loss(*rows, **arguments, t_squared=t_squared, reduction="none")
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-10)
    assert loss(*rows, **arguments, t_squared=t_squared).item() == pytest.approx(expected.mean(), rel=1e-10)


def test_gradient_of_wsld_does_not_go_through_its_weight(rows: Rows) -> None:
    """It is that of the cross-entropy, (p_s - p_t) / T, times the weight, T² and 1 / N."""
    student, teacher, target = rows
    learning = student.clone().requires_grad_()
    wsld(learning, teacher, target, temperature=4.0).backward()
    in_doubt = [x.log_softmax(-1).gather(1, target[:, None]) for x in (student, teacher)]
    weight = 1 - torch.exp(-in_doubt[0] / (in_doubt[1] - 1e-7))
    gap = (student / 4).softmax(-1) - (teacher / 4).softmax(-1)
    torch.testing.assert_close(learning.grad, weight * 4.0 * gap / len(student))


def test_wsld_spares_what_the_student_knows_better() -> None:
    teacher, target = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([0])
    knows, doubts = torch.tensor([[20.0, 0.0, 0.0]]), torch.tensor([[-20.0, 0.0, 0.0]])
    plain = -(teacher / 2).softmax(-1) * (doubts / 2).log_softmax(-1)
    assert wsld(knows, teacher, target).item() < 1e-6
    assert wsld(doubts, teacher, target).item() == pytest.approx(4 * plain.sum().item(), rel=1e-6)


def test_certain_target_does_not_hide_the_rest() -> None:
    """The rest's probabilities keep float32's precision where the target's logit is 10 000 above them."""
    rest_student, rest_teacher = torch.tensor([[0.3, -0.2, 1.1]]), torch.tensor([[1.0, 0.0, -1.0]])
    certain = torch.tensor([[1e4]])
    student, teacher = (torch.cat([certain, rest], dim=1) for rest in (rest_student, rest_teacher))
    value = nkd(student, teacher, torch.tensor([0]), gamma=1.0)
    expected = -(rest_teacher.softmax(-1) * rest_student.log_softmax(-1)).sum()
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)


def test_plain_ofa_is_the_cross_entropy_and_more_eps_weighs_the_target(rows: Rows) -> None:
    student, teacher, target = rows
    plain = torch.nn.functional.cross_entropy(student, teacher.softmax(-1))
    torch.testing.assert_close(ofa(student, teacher, target), plain)
    sure_of_target = 10.0 * torch.nn.functional.one_hot(target, 5).double()
    assert ofa(sure_of_target, teacher, target, eps=2.0) < ofa(sure_of_target, teacher, target)


@formulas.plain("nkd", "s_logits", "t_logits", "target")
def plain_nkd(x: formulas.Inputs) -> Tensor:
    y = formulas.one_hot(x)
    s, t = formulas.p(x["s_logits"]), formulas.p(x["t_logits"])
    own = -((t * y).sum(1) * (s * y).sum(1).log()).mean()
    rest = [formulas.p(x[name] - 1000 * y) for name in ("t_logits", "s_logits")]
    return own - 1.5 * (rest[0] * rest[1].clamp_min(1e-30).log() * (1 - y)).sum(1).mean()


@formulas.plain("wsld", "s_logits", "t_logits", "target")
def plain_wsld(x: formulas.Inputs) -> Tensor:
    hard = [F.cross_entropy(x[name], x["target"], reduction="none") for name in ("s_logits", "t_logits")]
    weight = 1 - (-hard[0] / (hard[1] + 1e-7)).exp()
    soft = -(formulas.p(x["t_logits"], 2) * formulas.p(x["s_logits"], 2).log()).sum(1)
    return 4 * (weight.detach() * soft).mean()
