"""Divergences of the literature of language models: jsd, reverse_kl, skewed_kl, skewed_reverse_kl, akl, tvd."""

from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from torch import Tensor

from distillery.core.errors import UserError
from distillery.losses.functional import akl, jsd, kd, reverse_kl, skewed_kl, skewed_reverse_kl, tvd, uld
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


T, S = np.array([[0.5, 0.3, 0.15, 0.05]]), np.array([[0.2, 0.5, 0.2, 0.1]])


def test_fixtures() -> None:
    student, teacher = torch.from_numpy(np.log(S) + 2), torch.from_numpy(np.log(T) - 1)
    values = [
        (kd(student, teacher, 1.0), 0.227088009),
        (reverse_kl(student, teacher), 0.199005798),
        (jsd(student, teacher, 0.1), 0.019967947),
        (jsd(student, teacher, 0.5), 0.051880048),
        (jsd(student, teacher, 0.9), 0.018005210),
        (skewed_kl(student, teacher, 0.1), 0.175816),
        (skewed_reverse_kl(student, teacher, 0.1), 0.163023),
        (uld(student, teacher), 0.2),
    ]
    values += [(kd(student, teacher, t), at_t) for t, at_t in ((1.0, 0.227088), (2.0, 0.219049), (4.0, 0.210340))]
    values += [
        (jsd(student, teacher, beta, divided=True), expected)
        for beta, expected in ((0.001, 0.227031), (0.1, 0.221866), (0.5, 0.207520), (0.9, 0.200058), (0.999, 0.199015))
    ]
    for found, expected in values:
        assert found.item() == pytest.approx(expected, abs=6e-7)


def test_gradients_are_those_by_hand() -> None:
    """With T they carry 1 / T: s - t of kd, s · (log s/t - RKL) of reverse_kl. Skewed forms by the chain rule."""
    expected: list[tuple[Loss, dict[str, float], list[float] | np.ndarray]] = [
        (kd, {"temperature": 1.0}, [-0.3, 0.2, 0.05, 0.05]),
        (reverse_kl, {}, [-0.223059, 0.155910, 0.017735, 0.049414]),
    ]
    s, t = S[0], T[0]
    s3, t3 = (p ** (1 / 3) / (p ** (1 / 3)).sum() for p in (s, t))
    expected += [
        (kd, {"temperature": 3.0, "t_squared": False}, (s3 - t3) / 3),
        (kd, {"temperature": 3.0}, 3 * (s3 - t3)),
    ]
    gap = np.log(s3 / t3)
    expected += [(reverse_kl, {"temperature": 3.0}, s3 * (gap - (s3 * gap).sum()) / 3)]
    of_p = -0.9 * t / (0.1 * t + 0.9 * s)  # ∂/∂s of -Σ t · log(0.1 t + 0.9 s)
    expected += [(skewed_kl, {"lam": 0.1}, s * (of_p - (s * of_p).sum()))]
    m = 0.9 * t + 0.1 * s
    of_p = np.log(s / m) + 1 - 0.1 * s / m
    expected += [(skewed_reverse_kl, {"lam": 0.1}, s * (of_p - (s * of_p).sum()))]
    for loss, settings, gradient in expected:
        student = torch.from_numpy(np.log(S)).requires_grad_()
        (found,) = torch.autograd.grad(loss(student, torch.from_numpy(np.log(T)), **settings), student)
        np.testing.assert_allclose(found[0].numpy(), gradient, atol=6e-7)
        assert found.sum().item() == pytest.approx(0, abs=1e-12)


def divided_by_hand(student: Tensor, teacher: Tensor, beta: float) -> list[float]:
    """With 50 digits, from the logits as they are."""
    rows = []
    with localcontext(prec=50):
        b = Decimal(beta)
        for pair in zip(student.tolist(), teacher.tolist(), strict=True):
            s, t = ([Decimal(x).exp() for x in row] for row in pair)
            s, t = [x / sum(s) for x in s], [x / sum(t) for x in t]
            m = [b * q + (1 - b) * p for p, q in zip(s, t, strict=True)]
            of_t, of_s = (sum(x * (x / y).ln() for x, y in zip(p, m, strict=True)) for p in (t, s))
            parts = [of_t / (1 - b) if b < 1 else Decimal(0), of_s / b if b > 0 else Decimal(0)]
            rows.append(float(sum(parts)))
    return rows


def test_divided_jsd_is_exact_near_both_ends_in_float32() -> None:
    """There the plain form, divided, has lost all its digits."""
    student, teacher = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(0))
    for scale in (1.0, 5.0, 30.0):
        s, t = scale * student, scale * teacher
        exact_ends = kd(s.double(), t.double(), 1.0), reverse_kl(s.double(), t.double())
        for beta in (0.0, 1e-9, 1e-6, 1e-3, 0.1, 0.5, 0.9, 1 - 1e-3, 1 - 1e-6, 1.0):
            expected = divided_by_hand(s, t, beta)
            found = jsd(s, t, beta, divided=True, reduction="none")
            np.testing.assert_allclose(found.numpy(), expected, rtol=2e-6)
            exact = jsd(s.double(), t.double(), beta, divided=True, reduction="none")
            np.testing.assert_allclose(exact.numpy(), expected, rtol=1e-12)
            leaf, exact_leaf = s.clone().requires_grad_(), s.double().requires_grad_()
            (gradient,) = torch.autograd.grad(jsd(leaf, t, beta, divided=True), leaf)
            (exact_gradient,) = torch.autograd.grad(jsd(exact_leaf, t.double(), beta, divided=True), exact_leaf)
            torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-4, atol=5e-6)
        for beta, end in ((0.0, exact_ends[0]), (1.0, exact_ends[1])):
            torch.testing.assert_close(jsd(s, t, beta, divided=True).double(), end, rtol=1e-6, atol=0)
            if scale < 30:  # there log(1/β) bounds it: it reaches the 64 nats at β = exp(-64)
                near = jsd(s.double(), t.double(), abs(beta - 1e-12), divided=True)
                torch.testing.assert_close(near, end, rtol=1e-4, atol=0)


def test_divided_jsd_keeps_to_the_contract() -> None:
    for beta in (0.0, 1e-6, 0.05, 0.5, 0.95, 1 - 1e-6, 1.0):
        student, teacher = 2 * torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

        def value(z: Tensor, beta: float = beta, teacher: Tensor = teacher) -> Tensor:
            return jsd(z, teacher, beta, 2.0, True, True)

        assert torch.autograd.gradcheck(value, student.requires_grad_()), beta
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for scale in (1.0, 1e4):
                s, t = (scale * torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(1))).to(dtype)
                for leaf in (s.requires_grad_(), t.clone().requires_grad_()):
                    rows = jsd(leaf, t, beta, divided=True, reduction="none")
                    (gradient,) = torch.autograd.grad(rows.sum(), leaf)
                    assert gradient.isfinite().all()
                    assert (rows > 1e-3).all() if leaf is s else rows.abs().max() < 1e-6


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
