"""Masked language modelling: the masked tokens of a text are predicted from the others."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from distillery.core.errors import UserError
from distillery.losses.signals import Signals
from distillery.tasks.classification import Classification
from distillery.tasks.metrics import SCORE
from distillery.tasks.task import Batch, Labelled, Task, Usage
from distillery.tasks.tokens import token_rows


@runtime_checkable
class Maskable(Protocol):
    """A data set that can mask tokens."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def mask(self) -> float | None: ...  # the fraction of tokens that are masked


class MaskedLM(Classification):
    """Predicts the masked tokens of a text (BERT; Devlin et al. 2019). Score: accuracy on them, in [0, 1].

    The loss is in nats per masked token; the perplexity that papers report is exp(mean loss). Perplexities are
    comparable only for the same vocabulary and the same masking.

    Args:
        weight: weight of the hard-label loss in the objective.
        metrics, monitor: see `Task`.
    """

    score = "masked accuracy"
    prediction = "token"
    rows_are = "tokens"
    masked = True
    perplexity = True
    head = "masked_lm"
    pipeline_tag = "fill-mask"

    def __init__(self, weight: float = 1.0, metrics: Sequence[str] = (), monitor: str = SCORE) -> None:
        super().__init__(weight, metrics=metrics, monitor=monitor)

    def outputs(self, data: Labelled) -> int:
        if not isinstance(data, Maskable):
            raise UserError(f"task=masked_lm: '{data.name}' has no tokens to mask. Choose a data set of texts.")
        if data.mask is None:
            raise UserError(
                f"task=masked_lm: no tokens of '{data.name}' are masked, so there is nothing to predict. "
                "Set data.mask=0.15, as BERT does."
            )
        return data.vocab_size

    def rows(self, signals: Signals, batch: Batch) -> tuple[Signals, Batch]:
        return token_rows("masked_lm", signals, batch)

    @classmethod
    def usage(cls, net: Any, tokenizer: Any) -> Usage:
        return Task.usage(net, tokenizer)._replace(text=f'"A {tokenizer.mask_token} of yours."')
