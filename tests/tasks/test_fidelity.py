"""Figures of fidelity against NumPy in float64."""

import numpy as np
import pytest
import torch

from distillery.tasks.fidelity import by_place, divergences, predictions

ROWS, CLASSES = 23, 7


def rows(seed: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(seed))


def distribution(logits: torch.Tensor) -> np.ndarray:
    odds = np.exp(logits.double().numpy())
    return np.asarray(odds / odds.sum(-1, keepdims=True))


def test_each_figure_is_that_of_numpy() -> None:
    student, teacher, target = rows(0), rows(1), torch.arange(ROWS) % CLASSES
    s, t = distribution(student), distribution(teacher)
    wanted = {
        "agreement": s.argmax(-1) == t.argmax(-1),
        "kl": (t * np.log(t / s)).sum(-1),
        "reverse_kl": (s * np.log(s / t)).sum(-1),
        "acceptance": np.minimum(s, t).sum(-1),
    }
    own = {
        "entropy": -(s * np.log(s)).sum(-1),
        "confidence": s.max(-1),
        "correct": s.argmax(-1) == target.numpy(),
    }
    for found, expected in ((divergences(student, teacher), wanted), (predictions(student, target), own)):
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(found[name].numpy(), values, rtol=2e-5, atol=1e-6, err_msg=name)
    same = divergences(student, student)
    assert [same[name].mean().item() for name in wanted] == pytest.approx([1, 0, 0, 1], abs=1e-6)
    np.testing.assert_allclose(wanted["acceptance"], 1 - np.abs(s - t).sum(-1) / 2)  # 1 - total variation
    with pytest.raises(ValueError, match="differ in shape"):
        divergences(student, teacher[:, :6])


def test_the_fixture_of_two_distributions() -> None:
    """Computed by hand: Σ min(s, t) = .3 + .3 + .15 + .05."""
    t, s = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log(), torch.tensor([[0.2, 0.5, 0.2, 0.1]]).log()
    found = {name: values.item() for name, values in divergences(s, t).items()}
    assert found["agreement"] == 0
    assert found["kl"] == pytest.approx(0.227088009, rel=1e-6)
    assert found["reverse_kl"] == pytest.approx(0.199005798, rel=1e-6)
    assert found["acceptance"] == pytest.approx(0.7)


def test_the_mean_by_place() -> None:
    assert by_place(torch.tensor([1.0, 3, 5, 7, 20]), torch.tensor([0, 1, 2, 3, 4]), 2) == [2, 6, 20]
