"""One class for each sample."""

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from distillery.core.errors import UserError
from distillery.core.numerics import at_least_float32
from distillery.tasks.metrics import SCORE
from distillery.tasks.task import Labelled, Task, Usage

BALANCED = "balanced"
ClassWeights = Sequence[NonNegativeFloat] | Literal["balanced"] | None


class Classification(Task):
    """One class for each sample, an image or a text. Score: top-1 accuracy, in [0, 1].

    Args:
        weight: weight of the hard-label loss in the objective (gamma, or 1 - alpha, in the literature).
        label_smoothing: probability mass taken from the label and spread over all classes (Szegedy et al. 2016).
        metrics, monitor: see `Task`.
        class_weights: what the loss of a row is multiplied by, for each class, [C]; `balanced`: see `balanced_weights`.
            The loss stays the mean over rows: it is the same however a batch is divided among processes and
            accumulated. (PyTorch's `cross_entropy` divides by the sum of the weights of its own batch instead.)

    Raises:
        UserError: `label_smoothing` is outside [0, 1]; metrics that `Task` refuses.
    """

    score = "accuracy"
    head = "sequence_classification"
    pipeline_tag = "text-classification"

    def __init__(
        self,
        weight: float = 1.0,
        label_smoothing: float = 0.0,
        metrics: Sequence[str] = (),
        monitor: str = SCORE,
        class_weights: ClassWeights = None,
    ) -> None:
        super().__init__(weight, metrics, monitor)
        if not 0 <= label_smoothing <= 1:
            raise UserError(f"label_smoothing={label_smoothing}: it must be between 0 and 1.")
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights

    def outputs(self, data: Labelled) -> int:
        if not data.classes:
            raise UserError(
                f"task=classification: the samples of '{data.name}' have no classes. Set data.source.label to the "
                "column of the classes, also if only the test texts have it: training texts without it are unlabelled "
                "ones. For numbers set task=regression, for masked words task=masked_lm."
            )
        return len(data.classes)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of each row [N], in at least float32, with classes [N] or their probabilities [N,C].

        With `class_weights`, the term of each class is multiplied by its weight.
        """
        logits = at_least_float32(logits)
        target = target.to(logits) if target.is_floating_point() else target
        weight = None
        if self.class_weights is not None:
            weight = _on_device(tuple(self.class_weights), logits.dtype, logits.device)
        return nn.functional.cross_entropy(
            logits, target, weight, label_smoothing=self.label_smoothing, reduction="none"
        )

    def metric(self, outputs: int | None) -> Metric:
        return MulticlassAccuracy(outputs, average="micro", validate_args=False)

    def predict(self, logits: Tensor) -> Tensor:
        return logits.argmax(-1)

    @classmethod
    def usage(cls, net: Any, tokenizer: Any) -> Usage:
        text, lines = super().usage(net, tokenizer)
        return Usage(text, [*lines, "model.config.id2label[logits[0].argmax().item()]"])


@cache
def _on_device(weights: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The weights as a tensor, copied once: each copy waits for the device."""
    with torch.inference_mode(False):  # the first to ask may be a validation
        return torch.tensor(weights, dtype=dtype, device=device)


def balanced_weights(counts: Tensor) -> list[float]:
    """Weights in inverse proportion to the classes' numbers of training rows, int64 [C] → [C].

    They are rows ÷ (classes × rows of the class), as in scikit-learn's `compute_class_weight`: their mean over the rows
    is 1, so that the loss keeps its scale. A class without rows does not count, and has the weight 1.
    """
    there = counts > 0
    weights = counts.sum() / (there.sum() * counts.double().clamp_min(1))
    return weights.where(there, 1.0).tolist()
