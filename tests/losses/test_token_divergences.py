"""Divergences of the literature of language models: jsd, reverse_kl, skewed_kl, skewed_reverse_kl, akl, tvd."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from torch import Tensor

from distillery.core.errors import UserError
from distillery.losses.functional import akl, jsd, kd, reverse_kl, skewed_kl, skewed_reverse_kl, tvd
from distillery.losses.response.jsd import JSD
from distillery.losses.term import Term
from fixtures import formulas
from fixtures.cases import each_case

Loss = Callable[..., Tensor]
EVERY: list[Loss] = [jsd, reverse_kl, skewed_kl, skewed_reverse_kl, akl, tvd]
each_loss = each_case("loss", EVERY)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return rel_entr(p, q).sum(-1)


def jsd_by_hand(s: np.ndarray, t: np.ndarray, beta: float) -> np.ndarray:
    """scipy's entropies: H(m) - β · H(t) - (1 - β) · H(s)."""
    mixture = beta * t + (1 - beta) * s
    return sum(weight * (p * np.log(p)).sum(-1) for weight, p in ((beta, t), (1 - beta, s), (-1, mixture)))  # type: ignore[return-value]


CASES: list[tuple[Loss, dict[str, Any], Callable[[np.ndarray, np.ndarray], np.ndarray]]] = [
    (jsd, {"beta": 0.3, "temperature": 1.0}, lambda s, t: jsd_by_hand(s, t, 0.3)),
    (jsd, {"beta": 0.8, "temperature": 3.0}, lambda s, t: jsd_by_hand(s, t, 0.8)),
    (jsd, {"beta": 0.0, "temperature": 3.0}, lambda s, t: kl(t, s)),
    (jsd, {"beta": 1.0, "temperature": 3.0}, lambda s, t: kl(s, t)),
    (reverse_kl, {"temperature": 1.0}, lambda s, t: kl(s, t)),
    (reverse_kl, {"temperature": 3.0}, lambda s, t: kl(s, t)),
    (skewed_kl, {"lam": 0.0}, lambda s, t: kl(t, s)),
    (skewed_kl, {"lam": 0.4}, lambda s, t: kl(t, 0.4 * t + 0.6 * s)),
    (skewed_reverse_kl, {"lam": 0.0}, lambda s, t: kl(s, t)),
    (skewed_reverse_kl, {"lam": 0.4}, lambda s, t: kl(s, 0.4 * s + 0.6 * t)),
    (tvd, {}, lambda s, t: np.maximum(s - t, 0).sum(-1)),
]


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    student, teacher = 2 * torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return student, teacher


@each_case(("loss", "arguments", "by_hand"), CASES)
def test_rows(
    logits: tuple[Tensor, Tensor],
    loss: Loss,
    arguments: dict[str, Any],
    by_hand: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> None:
    temperature = arguments.get("temperature", 1.0)
    expected = by_hand(*(softmax(x.numpy() / temperature, axis=-1) for x in logits))
    rows = loss(*logits, **arguments, reduction="none")
    np.testing.assert_allclose(rows.numpy(), expected, rtol=1e-10)
    assert loss(*logits, **arguments).item() == pytest.approx(expected.mean(), rel=1e-10)
    if "temperature" in arguments:
        scaled = loss(*logits, **arguments, t_squared=True)
        assert scaled.item() == pytest.approx(temperature**2 * expected.mean(), rel=1e-10)


@each_loss
def test_no_rows_give_zero(loss: Loss) -> None:
    student = torch.randn(0, 4, requires_grad=True)
    value = loss(student, torch.randn(0, 4))
    value.backward()
    assert value.item() == 0


@each_loss
def test_logits_of_200_stay_finite(loss: Loss) -> None:
    """There the probabilities of the mixtures underflow, and the log of their sum is -inf."""
    student, teacher = 200 * torch.randn(2, 64, 50, generator=torch.Generator().manual_seed(0))
    assert torch.isinf((student.softmax(-1) + teacher.softmax(-1)).log()).any()
    student.requires_grad_()
    value = loss(student, teacher)
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.any()


@each_case("end", [0.0, 1.0])
def test_jsd_jumps_at_both_ends_of_beta(logits: tuple[Tensor, Tensor], end: float) -> None:
    assert jsd(*logits, beta=end) > 0.5
    assert jsd(*logits, beta=abs(end - 1e-6)) < 1e-4


@each_case("lam", [0.1, 0.5])
def test_skewed_losses_are_bounded_by_the_share(lam: float) -> None:
    student, teacher = torch.tensor([[100.0, 0.0]]), torch.tensor([[0.0, 100.0]])
    for loss in (skewed_kl, skewed_reverse_kl):
        assert loss(student, teacher, lam).item() == pytest.approx(-np.log(lam), rel=1e-6)


@each_case(
    ("term", "arguments", "words"),
    [
        (JSD, {"beta": -0.1}, "beta=-0.1"),
        (JSD, {"beta": 1.5}, "beta=1.5"),
    ],
)
def test_settings_out_of_range_are_refused(term: type[Term], arguments: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        term(**arguments)


def test_forward_and_reverse_are_mirrors(logits: tuple[Tensor, Tensor]) -> None:
    student, teacher = logits
    torch.testing.assert_close(reverse_kl(student, teacher), kd(teacher, student, 1.0))
    torch.testing.assert_close(skewed_reverse_kl(student, teacher, 0.3), skewed_kl(teacher, student, 0.3))


@formulas.plain("jsd", "s_logits", "t_logits")
def plain_jsd(x: formulas.Inputs) -> Tensor:
    s, t = formulas.p(x["s_logits"]), formulas.p(x["t_logits"])
    m = (s + t) / 2
    return (formulas.divergence(t, m) / 2 + formulas.divergence(s, m) / 2).mean()


@formulas.plain("reverse_kl", "s_logits", "t_logits")
def plain_reverse_kl(x: formulas.Inputs) -> Tensor:
    return formulas.divergence(formulas.p(x["s_logits"]), formulas.p(x["t_logits"])).mean()


@formulas.plain("skewed_kl", "s_logits", "t_logits")
def plain_skewed_kl(x: formulas.Inputs) -> Tensor:
    return formulas.divergence(t := formulas.p(x["t_logits"]), 0.1 * t + 0.9 * formulas.p(x["s_logits"])).mean()


@formulas.plain("skewed_reverse_kl", "s_logits", "t_logits")
def plain_skewed_reverse_kl(x: formulas.Inputs) -> Tensor:
    return formulas.divergence(s := formulas.p(x["s_logits"]), 0.9 * formulas.p(x["t_logits"]) + 0.1 * s).mean()


@formulas.plain("tvd", "s_logits", "t_logits")
def plain_tvd(x: formulas.Inputs) -> Tensor:
    return (formulas.p(x["s_logits"]) - formulas.p(x["t_logits"])).abs().sum(1).mean() / 2
