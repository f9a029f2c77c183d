"""The task loss with the soft labels of mixed images, and with weights of the classes."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.utils.class_weight import compute_class_weight

from distillery.tasks.classification import Classification, balanced_weights

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


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_are_those_of_pytorch_over_the_number_of_rows(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [0.5, 2.0, 0.0, 1.0, 3.0, 1.5]
    logits, target = torch.randn(30, CLASSES, generator=generator), torch.randint(CLASSES, (30,), generator=generator)
    task = Classification(label_smoothing=smoothing, class_weights=weights)
    found = task.loss(logits, target)
    weight = torch.tensor(weights)
    theirs = torch.nn.functional.cross_entropy(logits, target, weight, label_smoothing=smoothing)  # over Σ weights
    assert found.mean() == pytest.approx(float(theirs * weight[target].sum() / 30), rel=1e-5)
    halves = [task.loss(logits[part], target[part]).sum() for part in (slice(0, 7), slice(7, 30))]
    assert sum(halves) / 30 == pytest.approx(float(found.mean()), rel=1e-6), "however the batch is divided"


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    target = np.repeat([0, 1, 2, 4], [40, 7, 2, 1])
    found = balanced_weights(torch.from_numpy(target).bincount(minlength=CLASSES))
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 2, 4]), y=target)
    assert np.allclose([found[label] for label in (0, 1, 2, 4)], expected)
    assert np.mean([found[label] for label in target]) == pytest.approx(1)
    assert found[3] == found[5] == 1, "no sample to weight"
