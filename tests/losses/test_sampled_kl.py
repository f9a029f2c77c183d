"""Estimators on sampled tokens: what their gradients minimise, by enumeration of everything that may be drawn."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.losses import on_policy
from distillery.losses.functional import kd, reverse_kl, sampled_kl
from distillery.losses.response.sampled_kl import SampledKL
from distillery.losses.signals import Signals
from fixtures import formulas

S = torch.tensor([0.2, 0.5, 0.2, 0.1], dtype=torch.float64)
T = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)


def enumerated(value: Callable[[Tensor], Tensor], drawn_from: Tensor = S) -> tuple[Tensor, Tensor]:
    """Mean and mean gradient by the student's logits of a value of the student's log-probabilities, over all tokens."""
    logits = S.log().requires_grad_()
    rows = value(logits.log_softmax(0))
    means = (drawn_from * rows).sum()
    (gradient,) = torch.autograd.grad(means, logits)
    return means.detach(), gradient


def gradient_of(loss: Callable[..., Tensor], student: Tensor = S) -> Tensor:
    logits = student.log()[None].requires_grad_()
    (found,) = torch.autograd.grad(loss(logits, T.log()[None], temperature=1.0), logits)
    return found[0]


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_means_of_values_and_gradients() -> None:
    forward, reverse = gradient_of(kd), gradient_of(reverse_kl)
    log_t = T.log()
    value, gradient = enumerated(lambda log_s: on_policy.k1(log_s, log_t))
    assert value.item() == pytest.approx(0.199006, abs=6e-7)
    same(gradient, torch.zeros(4).double())  # nothing to learn from
    value, gradient = enumerated(lambda log_s: on_policy.k2(log_s, log_t))
    assert value.item() == pytest.approx(0.181493, abs=6e-7)
    same(gradient, reverse)
    value, gradient = enumerated(lambda log_s: on_policy.k3(log_s, log_t))
    assert value.item() == pytest.approx(0.199006, abs=6e-7)
    same(gradient, forward)
    same(gradient, S - T)

    def own(log_s: Tensor) -> Tensor:
        return on_policy.policy_gradient(log_s, log_s.detach(), on_policy.advantage(log_t, log_s))

    value, gradient = enumerated(own)
    assert value.item() == pytest.approx(0.199006, abs=6e-7)
    same(gradient, reverse)


def test_what_a_token_is_worth_has_no_gradient() -> None:
    """Of each token by itself: what the worth and s_old would add has mean 0 over all of them."""
    log_s = S.log().requires_grad_()
    assert not on_policy.advantage(T.log(), log_s).requires_grad
    worth = T.log() - log_s
    (gradient,) = torch.autograd.grad(on_policy.policy_gradient(log_s, log_s, worth).sum(), log_s)
    same(gradient, -worth.detach())


def test_the_term_is_its_estimator_at_the_sampled_token() -> None:
    drawn = torch.arange(4)
    for estimator, expected in (("k2", reverse_kl), ("k3", kd), ("policy_gradient", reverse_kl)):
        logits = (3 * S.log() + 5).expand(4, 4).clone().requires_grad_()
        term = SampledKL(estimator=estimator, temperature=3.0)  # type: ignore[arg-type]
        rows = term(Signals(logits), Signals((3 * T.log()).expand(4, 4)), {"target": drawn})
        (gradient,) = torch.autograd.grad((S * rows).sum(), logits)
        same(gradient.sum(0), gradient_of(expected) / 3)


def test_stale_samples_are_weighted() -> None:
    """Drawn from another student, the mean gradient is that of Σ s · (log s_old - log t)."""
    old = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    logits = S.log().expand(4, 4).clone().requires_grad_()
    batch = {"target": torch.arange(4), "sampled_log_prob": old.log()}
    rows = SampledKL(estimator="policy_gradient")(Signals(logits), Signals(T.log().expand(4, 4)), batch)
    same(rows.detach(), -(S / old) * (T.log() - old.log()))
    (gradient,) = torch.autograd.grad((old * rows).sum(), logits)
    exact = S.log().requires_grad_()
    (expected,) = torch.autograd.grad((exact.softmax(0) * (old / T).log()).sum(), exact)
    same(gradient.sum(0), expected)


def test_numbers_that_would_be_broadcast_are_refused() -> None:
    batch = {"target": torch.arange(4), "sampled_log_prob": S.log()[None]}
    with pytest.raises(ValueError, match=r"log_sampled \[1, 4\] must have one number for each of 4 rows"):
        SampledKL(estimator="policy_gradient")(Signals(torch.zeros(4, 4)), Signals(torch.zeros(4, 4)), batch)


def test_clipped_ratios_have_no_gradient_in_the_direction_of_their_advantage() -> None:
    log_s = torch.tensor([0.5, 0.5, -0.5, -0.5, 0.1], requires_grad=True)
    worth = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    rows = on_policy.policy_gradient(log_s, torch.zeros(5), worth, clip=0.2)
    up, down = math.exp(0.5), math.exp(-0.5)
    torch.testing.assert_close(rows.detach(), torch.tensor([-1.2, up, -down, 0.8, -math.exp(0.1)]))
    (gradient,) = torch.autograd.grad(rows.sum(), log_s)
    torch.testing.assert_close(gradient, torch.tensor([0.0, up, -down, 0.0, -math.exp(0.1)]))
    term = SampledKL(estimator="policy_gradient", clip=0.2)
    batch = {"target": torch.zeros(1, dtype=torch.long), "sampled_log_prob": torch.tensor([-3.0])}
    assert term(Signals(torch.zeros(1, 2)), Signals(torch.tensor([[9.0, 0.0]])), batch).item() == pytest.approx(
        -3.6, abs=1e-3
    )


def test_k3_and_ratios_stay_finite() -> None:
    log_s = torch.tensor([-30.0, -1e4, -1.0, -20.5], requires_grad=True)
    log_t = torch.tensor([-1.0, 0.0, -1e4, -0.5])
    value = on_policy.k3(log_s, log_t)
    (gradient,) = torch.autograd.grad(value.sum(), log_s)
    assert value.isfinite().all()
    assert (gradient[[0, 1, 3]] < -1e8).all()  # towards the teacher, with the slope at log r = 20
    assert gradient[2].item() == pytest.approx(1)
    torch.testing.assert_close(value[3].item(), math.exp(20.0) - 21)
    assert on_policy.policy_gradient(log_s, log_s.detach() - 1e4, log_t).isfinite().all()


def test_gradients_of_k2_and_k3_are_those_of_finite_differences() -> None:
    student, teacher = 2 * torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 3, 6, 2, 2])
    for estimator in ("k2", "k3"):

        def value(z: Tensor, estimator: str = estimator) -> Tensor:
            return sampled_kl(z, teacher, target, estimator, 2.0)  # type: ignore[arg-type]

        assert torch.autograd.gradcheck(value, student.clone().requires_grad_())


def test_k1_is_refused_with_the_reason() -> None:
    with pytest.raises(UserError, match=r"estimator=k1: .* mean 0 .* teaches nothing. Use policy_gradient"):
        SampledKL(estimator="k1")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="estimator=k1"):
        sampled_kl(S[None], T[None], torch.zeros(1, dtype=torch.long), "k1")  # type: ignore[arg-type]


# Two networks over texts of two tokens out of three: logits of the first token, and of the second given the first.
FIRST = torch.tensor([[0.3, -0.2, 0.1], [0.0, 0.4, -0.4]], dtype=torch.float64)
SECOND = torch.tensor(
    [
        [[0.5, 0.0, -0.5], [-0.1, 0.2, 0.4], [0.0, 0.7, -0.3]],
        [[0.2, 0.2, -0.2], [0.6, -0.6, 0.0], [-0.3, 0.1, 0.5]],
    ],
    dtype=torch.float64,
)
TEXTS = torch.tensor(list(itertools.product(range(3), repeat=2)))  # all nine


def of_texts(first: Tensor, second: Tensor) -> Tensor:
    """Log-probabilities of the tokens of all texts, [9,2]."""
    one, two = TEXTS.unbind(1)
    return torch.stack([first.log_softmax(-1)[one], second.log_softmax(-1)[one, two]], 1)


def divergence_of_texts(first: Tensor, second: Tensor) -> Tensor:
    student, teacher = of_texts(first, second).sum(1), of_texts(FIRST[1], SECOND[1]).sum(1)
    return (student.exp() * (student - teacher)).sum()


def mean_gradients(discount: float) -> tuple[Tensor, Tensor]:
    first, second = FIRST[0].clone().requires_grad_(), SECOND[0].clone().requires_grad_()
    student, teacher = of_texts(first, second), of_texts(FIRST[1], SECOND[1])
    worth = on_policy.returns(on_policy.advantage(teacher, student), discount)
    tokens = on_policy.policy_gradient(student, student.detach(), worth)
    return torch.autograd.grad((student.detach().sum(1).exp()[:, None] * tokens).sum(), (first, second))


def test_all_nine_texts() -> None:
    first, second = FIRST[0].clone().requires_grad_(), SECOND[0].clone().requires_grad_()
    divergence = divergence_of_texts(first, second)
    assert divergence.item() == pytest.approx(0.228237664, abs=1e-9)
    exact = torch.autograd.grad(divergence, (first, second))
    assert torch.autograd.gradcheck(divergence_of_texts, (first, second))
    of_sequences, of_tokens = mean_gradients(1.0), mean_gradients(0.0)
    for found, expected in zip(of_sequences, exact, strict=True):
        same(found, expected)
    close = {"rtol": 0.0, "atol": 6e-7}
    torch.testing.assert_close(of_sequences[0].tolist(), [0.030351, -0.168495, 0.138144], **close)
    torch.testing.assert_close(of_tokens[0].tolist(), [0.064967, -0.185675, 0.120708], **close)
    rows = [[0.055423, -0.029717, -0.025707], [-0.060039, 0.045595, 0.014443], [0.005048, 0.064483, -0.069531]]
    for found in (of_sequences, of_tokens):
        torch.testing.assert_close(found[1].tolist(), rows, **close)


def test_returns_are_discounted_from_each_token() -> None:
    rewards = torch.ones(1, 4)
    torch.testing.assert_close(on_policy.returns(rewards, 0.5), torch.tensor([[1.875, 1.75, 1.5, 1.0]]))
    assert on_policy.returns(rewards, 0.0).tolist() == [[1.0, 1.0, 1.0, 1.0]]
    assert on_policy.returns(rewards, 1.0).tolist() == [[4.0, 3.0, 2.0, 1.0]]
    assert on_policy.returns(rewards, 0.5, normalise=True).tolist() == [[1.0, 1.0, 1.0, 1.0]]


def test_padding_and_gaps_change_no_return() -> None:
    rewards = torch.randn(3, generator=torch.Generator().manual_seed(0))
    for normalise in (False, True):
        bare = on_policy.returns(rewards[None], 0.7, normalise=normalise)[0]
        padded, mask = torch.full((3, 6), math.nan), torch.zeros(3, 6)
        for row, places in enumerate(([0, 1, 2], [3, 4, 5], [0, 2, 5])):
            padded[row, places], mask[row, places] = rewards, 1.0
        found = on_policy.returns(padded, 0.7, mask, normalise)
        torch.testing.assert_close(found[mask.bool()].view(3, 3), bare.expand(3, 3))
        assert not found[~mask.bool()].any()


def test_long_texts_have_returns_to_their_end() -> None:
    """Powers counted from the start underflow there: 0 / 0 once they are normalised."""
    found = on_policy.returns(torch.ones(1, 3000), 0.5, normalise=True)
    torch.testing.assert_close(found, torch.ones(1, 3000))


@formulas.plain("sampled_kl", "s_logits", "t_logits", "target")
def plain_sampled_kl(x: formulas.Inputs) -> Tensor:
    s, t = (formulas.p(x[name]).gather(1, x["target"][:, None]) for name in ("s_logits", "t_logits"))
    return ((t / s).log() ** 2 / 2).mean()
