import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.losses.feature.nst import NST
from distillery.losses.functional import nst
from distillery.losses.signals import Signals
from fixtures import formulas
from fixtures.random import draw


def by_hand(student: Tensor, teacher: Tensor) -> list[float]:
    """The squared discrepancy of each sample, one pair of channels at a time (equation 3, with kernel (aᵀb)²)."""

    def mean_kernel(first: np.ndarray, second: np.ndarray) -> float:
        pairs = itertools.product(first.reshape(len(first), -1), second.reshape(len(second), -1))
        return float(np.mean([(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) ** 2 for a, b in pairs]))

    samples = zip(student.numpy(), teacher.numpy(), strict=True)
    return [mean_kernel(s, s) + mean_kernel(t, t) - 2 * mean_kernel(s, t) for s, t in samples]


def test_rows() -> None:
    student, teacher = draw(4, 3, 2, 5), draw(4, 7, 2, 5, seed=1)
    np.testing.assert_allclose(nst(student, teacher, reduction="none").numpy(), by_hand(student, teacher), rtol=1e-10)
    assert nst(student, teacher).item() == pytest.approx(np.mean(by_hand(student, teacher)), rel=1e-10)


def test_larger_map_is_average_pooled() -> None:
    student, teacher = draw(4, 3, 4, 6), draw(4, 7, 2, 3, seed=1)
    pooled = torch.tensor(student.numpy().reshape(4, 3, 2, 2, 3, 2).mean((3, 5)))
    torch.testing.assert_close(nst(student, teacher), nst(pooled, teacher))


def test_order_sign_and_scale_of_channels_do_not_matter() -> None:
    """It compares sets of patterns; hint, say, would not call these networks equal."""
    teacher = draw(4, 3, 4, 4)
    student = teacher[:, [2, 0, 1]] * torch.tensor([-1.0, 20.0, 0.1]).view(-1, 1, 1)
    assert abs(nst(student, teacher).item()) < 1e-12


def test_dead_channel_has_finite_gradient() -> None:
    student = draw(2, 3, 4, 4)
    student[:, 1] = 0
    student.requires_grad_()
    nst(student, draw(2, 3, 4, 4, seed=1)).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_term_sums_its_pairs() -> None:
    student, teacher = {"a": draw(4, 3, 4, 4), "b": draw(4, 5, 2, 2)}, {"x": draw(4, 6, 4, 4), "y": draw(4, 6, 2, 2)}
    term = NST(layers={"a": "x", "b": "y"})
    term.build({k: v.shape for k, v in student.items()}, {k: v.shape for k, v in teacher.items()})
    value = term(Signals(draw(4, 2), student), Signals(draw(4, 2), teacher), {})
    expected = nst(student["a"], teacher["x"], "none") + nst(student["b"], teacher["y"], "none")
    torch.testing.assert_close(value, expected, rtol=0, atol=0)


def test_maps_of_one_position_are_refused() -> None:
    with pytest.raises(UserError, match=r"student layer 'a' \[4, 8, 1, 1\].*single position .*Choose earlier layers"):
        NST(layers={"a": "x"}).build({"a": torch.Size((4, 8, 1, 1))}, {"x": torch.Size((4, 8, 4, 4))})


@formulas.plain("nst", "s_map", "t_map")
def plain_nst(x: formulas.Inputs) -> Tensor:
    s, t = (formulas.unit(x[name].flatten(2)) for name in ("s_map", "t_map"))

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.mT).pow(2).mean()

    return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)
