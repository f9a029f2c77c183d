"""How far the probabilities of classes can be trusted: calibration error, Brier score, negative log-likelihood."""

from typing import NamedTuple

import torch
from torch import Tensor

BINS = 15


class Calibration(NamedTuple):
    """Confidence and accuracy by bins of confidence (0 to 1/15, to 2/15, …).

    Attributes:
        error: Σ over the bins of their share of the rows · |accuracy - confidence| (expected calibration error; Guo et
            al. 2017, https://arxiv.org/abs/1706.04599, equation 5).
        counts: rows of each bin.
        confidence, accuracy: means of each bin; NaN where it is empty.
    """

    error: float
    counts: list[int]
    confidence: list[float]
    accuracy: list[float]

    @property
    def bins(self) -> dict[str, list[int] | list[float]]:
        """What a record keeps of it, for a reliability diagram."""
        return {"count": self.counts, "confidence": self.confidence, "accuracy": self.accuracy}


def calibration(confidence: Tensor, correct: Tensor) -> Calibration:
    """From the confidence of each row, and whether its prediction is correct, [N]."""
    place = (confidence.double() * BINS).ceil().long().clamp(1, BINS) - 1
    counts = place.bincount(minlength=BINS)
    sure, right = (place.bincount(each.double(), minlength=BINS) / counts for each in (confidence, correct))
    error = ((right - sure).abs().nan_to_num() * counts).sum() / counts.sum()
    return Calibration(error.item(), counts.tolist(), sure.tolist(), right.tolist())


def adaptive_error(confidence: Tensor, correct: Tensor) -> float:
    """The calibration error with bins of equally many rows: the rows in order of confidence, divided into 15 parts.

    Equal widths put most rows of a confident network into one bin (Nguyen and O'Connor 2015,
    https://arxiv.org/abs/1508.05154; Nixon et al. 2019, https://arxiv.org/abs/1904.01685).
    """
    order = confidence.argsort(stable=True)
    differences = (correct[order].double() - confidence[order].double()).tensor_split(BINS)
    return sum(abs(each.sum().item()) for each in differences) / max(1, len(confidence))


def calibration_figures(probabilities: Tensor, target: Tensor) -> dict[str, float]:
    """Of the probabilities of each row's classes, [N,C], and its class, [N].

    `calibration_error` (equal widths, see `Calibration`) and `adaptive_calibration_error`, both of the likeliest class.
    `brier`: mean of Σ over the classes of (p - y)², from 0 to 2 (Brier 1950). `nll`: mean of -log p of the right class,
    in nats, without class weights and label smoothing; p is at least the smallest normal number of its type.
    """
    likeliest = probabilities.max(-1)
    correct = likeliest.indices == target
    right = probabilities.double().gather(-1, target.long()[:, None])[:, 0]
    brier = probabilities.double().square().sum(-1) - 2 * right + 1
    return {
        "calibration_error": calibration(likeliest.values, correct).error,
        "adaptive_calibration_error": adaptive_error(likeliest.values, correct),
        "brier": brier.mean().item(),
        "nll": -right.clamp_min(torch.finfo(probabilities.dtype).tiny).log().mean().item(),
    }
