"""The masked tokens of a text are to be found out from the others."""

from typing import Protocol, runtime_checkable

from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from distillery.core.errors import UserError
from distillery.core.numerics import at_least_float32
from distillery.losses.signals import Signals
from distillery.tasks.task import Batch, Labelled
from distillery.tasks.tokens import token_rows


@runtime_checkable
class Maskable(Protocol):
    """Data that can be served with masked tokens."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def mask(self) -> float | None: ...  # the share of tokens that are masked


class MaskedLM:
    """Predicts the masked tokens of a text (BERT; Devlin et al. 2019). Score: accuracy on these, in [0, 1].

    The perplexity that papers report is exp(mean loss), for the loss is in nats a masked token. It compares only where
    vocabulary and masking are the same.

    Args:
        weight: of the hard-label loss in the objective.
    """

    score = "masked accuracy"
    head = "masked_lm"
    perplexity = True

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def outputs(self, data: Labelled) -> int:
        if not isinstance(data, Maskable):
            raise UserError(f"task=masked_lm: '{data.name}' has no tokens to mask. Choose a data set of texts.")
        if data.mask is None:
            raise UserError(
                f"task=masked_lm: none of the tokens of '{data.name}' are masked, so that there is nothing to predict. "
                "Set data.mask=0.15, the share of BERT."
            )
        return data.vocab_size

    def rows(self, signals: Signals, batch: Batch) -> tuple[Signals, Batch]:
        """Every masked token is a row."""
        return token_rows("masked_lm", signals, batch)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of each row [N], in nats and at least float32."""
        return nn.functional.cross_entropy(at_least_float32(logits), target, reduction="none")

    def metric(self, outputs: int | None) -> MulticlassAccuracy:
        return MulticlassAccuracy(outputs, average="micro", validate_args=False)

    def predict(self, logits: Tensor) -> Tensor:
        """The predicted token of each row, [N]."""
        return logits.argmax(-1)
