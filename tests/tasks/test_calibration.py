"""Figures of calibration against torchmetrics, scikit-learn and NumPy in float64."""

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.classification import MulticlassCalibrationError

from distillery.tasks.calibration import BINS, adaptive_error, calibration, calibration_figures

ROWS, CLASSES = 97, 7


def rows(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    logits = 3.0 * torch.randn(ROWS, CLASSES, generator=draw)
    noisy = logits + 3.0 * torch.randn(ROWS, CLASSES, generator=draw)
    return logits.softmax(-1), noisy.argmax(-1)


def test_the_bins_are_those_of_torchmetrics_and_of_a_loop() -> None:
    probabilities, target = rows(2)
    sure, right = probabilities.max(-1).values, probabilities.argmax(-1) == target
    found = calibration(sure, right)
    metric = MulticlassCalibrationError(CLASSES, n_bins=BINS, norm="l1")
    assert found.error == pytest.approx(metric(probabilities, target).item(), rel=1e-5)
    edges = np.linspace(0, 1, BINS + 1)
    for place in range(BINS):
        inside = (sure > edges[place]) & (sure <= edges[place + 1])
        assert found.counts[place] == inside.sum()
        if inside.any():
            assert found.confidence[place] == pytest.approx(sure[inside].mean().item(), rel=1e-5)
            assert found.accuracy[place] == pytest.approx(right[inside].float().mean().item())
    assert sum(found.counts) == ROWS
    assert calibration(torch.ones(4), torch.ones(4)).error == 0
    assert calibration(torch.ones(4), torch.tensor([1.0, 0, 0, 0])).error == pytest.approx(0.75)


def test_each_figure_is_that_of_a_library() -> None:
    probabilities, target = rows(3)
    found = calibration_figures(probabilities, target)
    exact = probabilities.double().numpy()
    exact = exact / exact.sum(1, keepdims=True)
    labels = range(CLASSES)
    metric = MulticlassCalibrationError(CLASSES, n_bins=BINS, norm="l1")
    assert found["calibration_error"] == pytest.approx(metric(probabilities, target).item(), rel=1e-5)
    assert found["nll"] == pytest.approx(log_loss(target.numpy(), exact, labels=labels), rel=1e-6)
    brier = brier_score_loss(target.numpy(), exact, labels=labels, scale_by_half=False)
    assert found["brier"] == pytest.approx(brier, rel=1e-6)
    order = np.argsort(exact.max(1))
    parts = np.array_split(order, BINS)
    hits, sure = exact.argmax(1) == target.numpy(), exact.max(1)
    wanted = sum(len(part) / ROWS * abs(hits[part].mean() - sure[part].mean()) for part in parts)
    assert found["adaptive_calibration_error"] == pytest.approx(wanted, rel=1e-5)


def test_a_class_that_was_ruled_out_costs_a_finite_amount() -> None:
    found = calibration_figures(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([1, 0]))
    assert found["nll"] == pytest.approx((np.log(2) - np.log(np.finfo(np.float32).tiny)) / 2)
    assert found["brier"] == pytest.approx((2 + 0.5) / 2)


def test_adaptive_bins_of_fewer_rows_than_bins() -> None:
    assert adaptive_error(torch.tensor([0.6, 0.9]), torch.tensor([True, False])) == pytest.approx((0.4 + 0.9) / 2)
