"""What the labels mean: the hard-label loss, the score, and which rows of logits count."""

from collections.abc import Mapping

from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from distillery.errors import UserError
from distillery.signals import Signals


class Classification:
    """One class for each sample. Score: top-1 accuracy in [0, 1].

    Args:
        weight: of the hard-label loss in the objective (the literature's gamma, or 1 - alpha).
        label_smoothing: mass taken from the label and spread over the classes (Szegedy et al. 2016).

    Raises:
        UserError: a `label_smoothing` outside of [0, 1].
    """

    score = "accuracy"

    def __init__(self, weight: float = 1.0, label_smoothing: float = 0.0) -> None:
        if not 0 <= label_smoothing <= 1:
            raise UserError(f"task.label_smoothing={label_smoothing}: it must lie between 0 and 1.")
        self.weight = weight
        self.label_smoothing = label_smoothing

    def rows(self, signals: Signals, batch: Mapping[str, Tensor]) -> tuple[Signals, Tensor]:
        """The rows of logits that count [N, C] and their targets [N]: here every sample, so N = B."""
        return signals, batch["target"]

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of each row [N], in at least float32."""
        logits = logits.float() if logits.dtype.itemsize < 4 else logits
        return nn.functional.cross_entropy(logits, target, label_smoothing=self.label_smoothing, reduction="none")

    def metric(self, num_classes: int) -> MulticlassAccuracy:
        return MulticlassAccuracy(num_classes, average="micro", validate_args=False)

    def predict(self, logits: Tensor) -> Tensor:
        """The predicted class of each row, [N]."""
        return logits.argmax(-1)
