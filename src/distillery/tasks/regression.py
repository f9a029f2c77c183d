"""One number for each sample."""

from torch import Tensor

from distillery.core.errors import UserError
from distillery.core.numerics import at_least_float32, require_same_shape
from distillery.losses.signals import Signals
from distillery.tasks.metrics import RankCorrelation
from distillery.tasks.task import Batch, Labelled, Task


class NonNegativeRankCorrelation(RankCorrelation):
    """Of predictions [N,1], of which a NaN counts as 0, and targets [N]. A negative correlation counts as 0."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(_numbers(preds).nan_to_num(), target)

    def compute(self) -> Tensor:
        return super().compute().clamp_min(0.0)


class Regression(Task):
    """One number for each sample, such as the similarity of two sentences. Score: Spearman's rank correlation.

    It is what is reported for STS-B (Cer et al. 2017). A negative correlation, which is worse than chance, counts as 0,
    so that the score is in [0, 1]. Constant predictions score 0.

    Args:
        weight: weight of the hard-label loss in the objective.
        metrics, monitor: see `Task`.
    """

    score = "Spearman correlation"
    prediction = "number"
    head = "sequence_classification"
    pipeline_tag = "text-classification"

    def outputs(self, data: Labelled) -> int:
        if data.classes:
            raise UserError(
                f"task=regression: the samples of '{data.name}' have classes, not numbers. Use task=classification; if "
                "the labels of texts are numbers, set data.source.regression=true."
            )
        return 1

    def rows(self, signals: Signals, batch: Batch) -> tuple[Signals, Batch]:
        """Every sample is a row: N = B.

        Raises:
            UserError: the targets are not one number for each sample.
        """
        target = batch["target"]
        if target.dim() != 1 or not target.is_floating_point():
            raise UserError(
                f"task=regression: the targets of this batch, {list(target.shape)} of {target.dtype}, are not one "
                "number for each sample. Choose data that have one."
            )
        return signals, batch

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The squared error of each row, [N], in at least float32."""
        numbers = _numbers(logits)
        require_same_shape(numbers, target)
        return (numbers - target).square()

    def metric(self, outputs: int | None) -> NonNegativeRankCorrelation:
        return NonNegativeRankCorrelation()

    def predict(self, logits: Tensor) -> Tensor:
        """The number of each row, [N], in at least float32."""
        return _numbers(logits)


def _numbers(logits: Tensor) -> Tensor:
    """[N,1] → [N], in at least float32."""
    return at_least_float32(logits).squeeze(-1)
