"""Numbers: the squared error against a loop, the score against SciPy's."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from distillery.core.errors import UserError
from distillery.losses.signals import Signals
from distillery.tasks.regression import Regression

BATCH = {"target": torch.tensor([0.5, 3.0, 4.0]), "index": torch.arange(3)}


def test_loss_is_the_squared_error_of_each_row() -> None:
    logits = torch.tensor([[1.0], [2.5], [8.0]], dtype=torch.float64)
    assert Regression().loss(logits, BATCH["target"]).tolist() == [0.25, 0.25, 16.0]
    assert Regression().predict(logits).tolist() == [1.0, 2.5, 8.0]


def test_a_network_of_16_bits_does_not_overflow() -> None:
    loss = Regression().loss(torch.full((3, 1), 3e4, dtype=torch.float16), BATCH["target"])
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()


@pytest.mark.parametrize("noise", [0.1, 1.0, 5.0])
def test_score_is_spearmans_with_ties_over_all_batches(noise: float) -> None:
    """As STS-B's targets, in fifths from 0 to 5. Neither Pearson's nor the mean of the batches' own."""
    random = np.random.default_rng(0)
    target = random.integers(0, 26, 200) / 5
    predicted = np.exp(target + noise * random.normal(size=200)).round(1)
    metric = Regression().metric(1)
    for part in np.split(np.arange(200), [17, 18, 100]):
        metric.update(torch.tensor(predicted[part, None]), torch.tensor(target[part], dtype=torch.float32))
    expected = spearmanr(predicted, target).statistic
    assert metric.compute().item() == pytest.approx(expected, abs=1e-5)
    assert abs(expected - pearsonr(predicted, target).statistic) > 0.01


def test_score_below_zero_is_zero() -> None:
    """Its contract is [0, 1]."""
    predicted, target = [[3.0], [2.0], [1.0], [1.5]], [1.0, 2.0, 3.0, 4.0]
    assert spearmanr(np.ravel(predicted), target).statistic < -0.5
    metric = Regression().metric(1)
    metric.update(torch.tensor(predicted), torch.tensor(target))
    assert metric.compute().item() == 0.0


@pytest.mark.parametrize("value", [2.0, float("nan")])
def test_a_network_that_says_the_same_of_all_scores_nothing(value: float) -> None:
    metric = Regression().metric(1)
    metric.update(torch.full((5, 1), value), torch.arange(5.0))
    assert metric.compute().item() == 0.0


def test_nobody_is_warned_of_what_is_meant() -> None:
    with warnings.catch_warnings(action="error"):
        Regression().metric(1)


def test_refusals() -> None:
    task = Regression()
    assert task.outputs(SimpleNamespace(name="x", classes=())) == 1
    with pytest.raises(UserError, match=r"samples of 'x' have classes, not numbers. Use task=classification"):
        task.outputs(SimpleNamespace(name="x", classes=("a", "b")))
    with pytest.raises(UserError, match=r"\[3\] of torch.int64, are not one number for each sample"):
        task.rows(Signals(torch.randn(3, 1)), {**BATCH, "target": torch.zeros(3, dtype=torch.long)})
    with pytest.raises(UserError, match=r"\[3, 2\] of torch.float32, are not one number for each sample"):
        task.rows(Signals(torch.randn(3, 1)), {**BATCH, "target": torch.zeros(3, 2)})
    with pytest.raises(ValueError, match=r"\[3, 3\] and teacher \[3\] differ in shape"):
        task.loss(torch.randn(3, 3), BATCH["target"])
