"""The task loss with the soft labels of mixed images."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from distillery.tasks.classification import Classification

CLASSES = 6


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_soft_labels_have_their_cross_entropy(smoothing: float) -> None:
    draw = np.random.default_rng(0)
    logits, target = draw.normal(size=(7, CLASSES)) * 5, draw.dirichlet(np.ones(CLASSES), 7)
    smoothed = (1 - smoothing) * target + smoothing / CLASSES
    expected = -(smoothed * log_softmax(logits, -1)).sum(-1)
    given = torch.from_numpy(logits), torch.from_numpy(target)
    task = Classification(label_smoothing=smoothing)
    assert np.allclose(task.loss(*given), expected)
    assert np.allclose(task.loss(given[0], given[1].float()), expected, atol=1e-5)
    low = task.loss(given[0].bfloat16(), given[1].bfloat16())
    assert low.dtype == torch.float32
    assert np.allclose(low, expected, rtol=0.05)


def test_one_hot_labels_are_hard_ones() -> None:
    logits, target = torch.randn(7, CLASSES, generator=torch.Generator().manual_seed(0)), torch.arange(7) % CLASSES
    task = Classification(label_smoothing=0.1)
    soft = task.loss(logits, torch.nn.functional.one_hot(target, CLASSES).float())
    assert torch.allclose(soft, task.loss(logits, target), atol=1e-6)
