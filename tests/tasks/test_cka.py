"""Centered kernel alignment against sums written out in NumPy, and what it must not depend on."""

import itertools

import numpy as np
import pytest
import torch

from distillery.tasks.cka import cka, unbiased_hsic


def features(rows: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def hsic_by_hand(k: np.ndarray, m: np.ndarray) -> float:
    """The means over all distinct samples that the estimate stands for: E K_ij L_ij + E K_ij L_qr - 2 E K_ij L_iq."""
    n = len(k)
    pairs = np.mean([k[i, j] * m[i, j] for i, j in itertools.permutations(range(n), 2)])
    apart = np.mean([k[i, j] * m[q, r] for i, j, q, r in itertools.permutations(range(n), 4)])
    shared = np.mean([k[i, j] * m[i, q] for i, j, q in itertools.permutations(range(n), 3)])
    return float(pairs + apart - 2 * shared)


def test_the_criterion_is_the_mean_over_distinct_samples() -> None:
    x, y = (features(7, width, seed).double() for width, seed in ((3, 0), (5, 1)))
    kernels = x @ x.T, y @ y.T
    found = unbiased_hsic(torch.stack(kernels), torch.stack(kernels))
    for (i, k), (j, m) in itertools.product(enumerate(kernels), repeat=2):
        assert found[i, j].item() == pytest.approx(hsic_by_hand(k.numpy(), m.numpy()), rel=1e-10)
    ours, theirs, both = (hsic_by_hand(kernels[a].numpy(), kernels[b].numpy()) for a, b in ((0, 0), (1, 1), (0, 1)))
    assert cka(x.float(), y.float()) == pytest.approx(both / np.sqrt(ours * theirs), rel=1e-4)


def test_it_does_not_depend_on_rotation_scale_and_shift() -> None:
    x, y = features(40, 6, 2), features(40, 9, 3)
    y[:, :6] += 2 * x
    turned = 7 * y @ torch.linalg.qr(features(9, 9, 4)).Q + 100
    assert cka(x, y) == pytest.approx(cka(x, turned), abs=1e-5)
    assert 0.2 < cka(x, y) < 0.95
    assert cka(y, turned) == pytest.approx(1, abs=1e-5)


def test_it_is_about_zero_for_independent_features_of_many_dimensions() -> None:
    """The plain estimate of Kornblith et al. is above 0.9 here."""
    x, y = features(50, 2000, 5).double(), features(50, 2000, 6).double()
    x, y = x - x.mean(0), y - y.mean(0)
    plain = (y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())
    assert plain > 0.9
    assert abs(cka(x, y)) < 0.05


def test_where_it_is_not_defined() -> None:
    assert np.isnan(cka(features(3, 4, 7), features(3, 4, 8)))
    assert np.isnan(cka(torch.ones(9, 4), features(9, 4, 8)))
