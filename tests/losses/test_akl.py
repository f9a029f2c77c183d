import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.losses.functional import akl, kd, reverse_kl
from fixtures import formulas
from fixtures.cases import each_case
from reference import akl as by_hand

VARIANTS = ("llm_kd_akl", "dskd")
each_setting = each_case(
    ("mu", "variant", "temperature"), list(itertools.product((0.25, 0.5, 0.8), VARIANTS, (1.0, 3.0)))
)


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    student, teacher = 2 * torch.randn(2, 6, 9, dtype=torch.float64, generator=draw)
    return student, teacher


@each_setting
def test_rows(logits: tuple[Tensor, Tensor], mu: float, variant: str, temperature: float) -> None:
    rows = akl(*logits, mu, variant, temperature, reduction="none")  # type: ignore[arg-type]
    pairs = zip(*(x.tolist() for x in logits), strict=True)
    expected = np.array([by_hand.akl(s, t, mu, variant, temperature) for s, t in pairs])
    np.testing.assert_allclose(rows.numpy(), expected, rtol=1e-10)
    with_t_squared = akl(*logits, mu, variant, temperature, t_squared=True)  # type: ignore[arg-type]
    assert with_t_squared.item() == pytest.approx(expected.mean() * temperature**2, rel=1e-10)


@each_setting
def test_gradient_by_finite_differences_with_the_weights_held(
    logits: tuple[Tensor, Tensor], mu: float, variant: str, temperature: float
) -> None:
    student, teacher = (x[0] for x in logits)
    learning = student.clone().requires_grad_()
    akl(learning[None], teacher[None], mu, variant, temperature).backward()  # type: ignore[arg-type]
    p_s, p_t = (by_hand.probabilities(x.tolist(), temperature) for x in (student, teacher))
    weights = by_hand.weights(p_s, p_t, mu, variant)

    def value(at: Tensor) -> float:
        return by_hand.akl(at.tolist(), teacher.tolist(), mu, variant, temperature, fixed=weights)

    steps = 1e-5 * torch.eye(len(student), dtype=torch.float64)
    expected = [(value(student + step) - value(student - step)) / 2e-5 for step in steps]
    assert learning.grad is not None
    np.testing.assert_allclose(learning.grad.numpy(), expected, rtol=1e-6, atol=1e-9)


def test_variants_differ_in_the_class_that_crosses_the_line() -> None:
    """Probabilities 0.4, 0.3, 0.2, 0.1: at 0.5 the second class is tail to the one, and head to the other."""
    teacher = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64).log()
    student = torch.tensor([[0.4, 0.1, 0.4, 0.1]], dtype=torch.float64).log()  # differs in classes 1 and 2 alike
    forward = kd(student, teacher, temperature=1.0)
    reverse = reverse_kl(student, teacher)
    torch.testing.assert_close(akl(student, teacher, variant="llm_kd_akl"), reverse)
    torch.testing.assert_close(akl(student, teacher, variant="dskd"), (forward + reverse) / 2)


@each_case("variant", VARIANTS)
def test_agreement_gives_zero_where_the_sources_divide_zero_by_zero(variant: str) -> None:
    student = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = akl(student, student.detach().clone(), variant=variant)  # type: ignore[arg-type]
    value.backward()
    assert value.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


def test_unknown_settings_are_refused(logits: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UserError, match="variant=dsdk"):
        akl(*logits, variant="dsdk")  # type: ignore[arg-type]


@formulas.plain("akl", "s_logits", "t_logits")
def plain_akl(x: formulas.Inputs) -> Tensor:
    s, t = formulas.p(x["s_logits"]), formulas.p(x["t_logits"])
    gap = (t - s).detach().abs()
    ordered, order = t.sort(descending=True)
    head = ordered.cumsum(1) <= 0.5
    head[:, 0] = True
    sums = [(gap.gather(1, order) * part).sum(1) for part in (head, ~head)]
    share = sums[0] / (sums[0] + sums[1])
    return (share * formulas.divergence(t, s) + (1 - share) * formulas.divergence(s, t)).mean()
