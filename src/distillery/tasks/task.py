"""What a task is: the hard-label loss, the score, and which rows of logits count."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor
from torchmetrics import Metric

from distillery.losses.signals import Signals

Batch = Mapping[str, Tensor]


class Labelled(Protocol):
    """What a task wants to know of a data set."""

    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...


class Task(Protocol):
    """What the labels mean. The rest of the package knows nothing of it but this."""

    score: str  # what the score is called in tables; it lies in [0, 1], the more the better
    head: str  # of a transformer for this task: a key of `distillery.models.text.transformer.HEADS`
    perplexity: bool  # whether exp(mean loss) is a figure that people read: predicts tokens
    weight: float  # of the hard-label loss in the objective

    def outputs(self, data: Labelled) -> int | None:
        """How many logits a row has on these data; None: any number.

        Raises:
            UserError: the data have no labels of this kind.
        """

    def rows(self, signals: Signals, batch: Batch) -> tuple[Signals, Batch]:
        """The rows of logits that count, [N, C], and the batch with `target` and `index` of each row, [N].

        `index` is the position of the row's sample in the data. Everything but the logits stays as it is.
        """

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The hard-label loss of each row, [N], in at least float32."""

    def metric(self, outputs: int | None) -> Metric:
        """What computes the score from logits and targets of rows, fed batch by batch, of one row at least."""

    def predict(self, logits: Tensor) -> Tensor:
        """The prediction of each row, [N, ...]."""
