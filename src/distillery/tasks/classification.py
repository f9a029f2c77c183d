"""One class for each sample."""

from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from distillery.core.errors import UserError
from distillery.core.numerics import at_least_float32
from distillery.losses.signals import Signals
from distillery.tasks.task import Batch, Labelled


class Classification:
    """One class for each sample, an image or a text. Score: top-1 accuracy in [0, 1].

    Args:
        weight: of the hard-label loss in the objective (the literature's gamma, or 1 - alpha).
        label_smoothing: mass taken from the label and spread over the classes (Szegedy et al. 2016).

    Raises:
        UserError: a `label_smoothing` outside of [0, 1].
    """

    score = "accuracy"
    head = "sequence_classification"
    perplexity = False

    def __init__(self, weight: float = 1.0, label_smoothing: float = 0.0) -> None:
        if not 0 <= label_smoothing <= 1:
            raise UserError(f"task.label_smoothing={label_smoothing}: it must lie between 0 and 1.")
        self.weight = weight
        self.label_smoothing = label_smoothing

    def outputs(self, data: Labelled) -> int:
        if not data.classes:
            raise UserError(f"task=classification: the samples of '{data.name}' have no classes.")
        return len(data.classes)

    def rows(self, signals: Signals, batch: Batch) -> tuple[Signals, Batch]:
        """Every sample is a row: N = B."""
        return signals, batch

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of each row [N], in at least float32."""
        return nn.functional.cross_entropy(
            at_least_float32(logits), target, label_smoothing=self.label_smoothing, reduction="none"
        )

    def metric(self, outputs: int | None) -> Metric:
        return MulticlassAccuracy(outputs, average="micro", validate_args=False)

    def predict(self, logits: Tensor) -> Tensor:
        """The predicted class of each row, [N]."""
        return logits.argmax(-1)
