"""Causal language modelling: each token of a text is predicted from those before it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torchmetrics import Metric

from distillery.core.errors import UserError
from distillery.core.kinds import conform
from distillery.core.numerics import at_least_float32
from distillery.data.other_tokens import next_tokens
from distillery.data.tokens import IGNORED
from distillery.losses.chunked import ROWS
from distillery.losses.on_policy import SAMPLED
from distillery.losses.signals import Signals
from distillery.tasks.metrics import SCORE
from distillery.tasks.task import Batch, Labelled, Task, Usage
from distillery.tasks.tokens import own_columns, token_rows


@runtime_checkable
class Documents(Protocol):
    """A data set that can serve whole documents."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def pack(self) -> bool | None: ...  # None: it serves texts for other tasks


class BitsPerByte(Metric):
    """Σ loss of the tokens that are text ÷ (ln 2 · Σ their bytes), over all batches and processes, in float64.

    Takes the loss of each row in nats [N], and how many bytes of UTF-8 the row's token stands for [N]. Rows of no byte,
    as the end of a text, count neither above nor below. NaN without any text.
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False
    nats: Tensor
    bytes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nats", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("bytes", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, loss: Tensor, bytes: Tensor) -> None:
        self.nats += loss.double()[bytes > 0].sum()
        self.bytes += bytes.sum()

    def compute(self) -> Tensor:
        return self.nats / (math.log(2) * self.bytes)


class CausalLM(Task):
    """Predicts each token of a text from those before it. Score: bits per byte; lower is better.

    It does not depend on the tokenizer, as a loss per token and its exponential, the perplexity, do. The loss is in
    nats per token.

    Args:
        weight: weight of the loss on the tokens of the texts in the objective.
        exact_match: whether the record and the report also say for which share of the prompts the student's likeliest
            continuation, token by token, is exactly the given one: for data with prompts and right answers.
        rows_per_chunk: logits are computed for so many tokens at a time, so that those of a batch never exist all at
            once; None: all at once.
        metrics, monitor: see `Task`.

    Raises:
        UserError: `rows_per_chunk` is below 1; metrics that `Task` refuses.
    """

    score = "bits per byte"
    higher_is_better = False
    score_range = (0.0, math.inf)
    prediction = "token"
    rows_are = "tokens"
    perplexity = True
    generates = True
    padded_outputs = True
    head = "causal_lm"
    pipeline_tag = "text-generation"

    def __init__(
        self,
        weight: float = 1.0,
        exact_match: bool = False,
        rows_per_chunk: int | None = ROWS,
        metrics: Sequence[str] = (),
        monitor: str = SCORE,
    ) -> None:
        super().__init__(weight, metrics, monitor)
        self.exact_match = exact_match
        self.rows_per_chunk = conform("rows_per_chunk", rows_per_chunk, PositiveInt | None)
        self._vocabulary: int | None = None  # the tokenizer's size; networks may have more logits
        self._others: Mapping[str, Documents] = {}  # the same texts for teachers with other tokenizers

    def outputs(self, data: Labelled) -> int:
        if not isinstance(data, Documents):
            raise UserError(f"task=causal_lm: '{data.name}' has no texts. Choose other data, such as data=plain_text.")
        if data.pack is None:
            raise UserError(
                f"task=causal_lm: '{data.name}' is set up for another task. Set data.pack=true data.mask=null "
                "data.too_long=split, and let the source read whole documents (data.source.label=null; for sotu "
                "data.source.words=null)."
            )
        self._vocabulary, self._others = data.vocab_size, getattr(data, "others", {})
        return self._vocabulary

    def rows(self, signals: Signals, batch: Batch) -> tuple[Signals, Batch]:
        """The tokens that bear loss, each with the logits of the token before it: [B,L,V] → rows [N,V].

        The data's `target` [B,L] is the token itself; this is the one place where it is shifted. `position` is where a
        row's logits stand, one before its target. `bytes` says what the target stands for, and `sampled_log_prob`, if
        the batch has it, with what log-probability the student has drawn it. Logits beyond the tokenizer's vocabulary
        are left out, so that softmaxes are over the same tokens in every network.

        A network with another tokenizer has rows of its own. Where there is one, `start` and `end` say which bytes of
        the texts the target of each row stands for.
        """
        batch = own_columns(batch, signals.tokenizer)
        if batch["target"].dim() != 2 or "bytes" not in batch:
            raise UserError("task=causal_lm: this batch has no documents. Set data.pack=true or false.")
        shifted = {**batch, "target": _next(batch["target"], IGNORED)}
        rows, labelled = token_rows("causal_lm", signals, shifted)
        others = self._others.get(signals.tokenizer or "")
        if (number := self._vocabulary if others is None else others.vocab_size) is not None:
            rows = _first_classes(rows, number)
        count = shifted["target"] != IGNORED
        own = {"bytes": _next(batch["bytes"], 0)[count]}
        if SAMPLED in batch:
            own[SAMPLED] = _next(batch[SAMPLED], math.nan)[count]
        places = {} if "ends" not in batch else next_tokens(batch)._asdict()
        return rows, {**places, **labelled, **own}

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of each row [N], in at least float32."""
        return nn.functional.cross_entropy(at_least_float32(logits), target, reduction="none")

    def metric(self, outputs: int | None) -> BitsPerByte:
        return BitsPerByte()

    def score_rows(self, metric: Metric, logits: Tensor, loss: Tensor, batch: Batch) -> None:
        metric.update(loss, batch["bytes"])

    def measured(self, data: Any, stride: int | None = None) -> str:
        tokenizer, length = data.loaded_tokenizer, data.limit
        first = tokenizer("a")["input_ids"][0]
        prefix = repr(tokenizer.convert_ids_to_tokens(first)) if first in tokenizer.all_special_ids else "none"
        cut = ", of which the first alone is read" if stride is None and data.too_long == "truncate" else ""
        return f"windows of {length} tokens, stride {stride or length - 1}{cut}, prefix token {prefix}"

    def predict(self, logits: Tensor) -> Tensor:
        return logits.argmax(-1)

    @classmethod
    def usage(cls, net: Any, tokenizer: Any) -> Usage:
        return Usage(
            '"The beginning of a text"',
            ["tokens = model.generate(**inputs, max_new_tokens=50)", "print(tokenizer.decode(tokens[0]))"],
        )


def _first_classes(rows: Signals, number: int) -> Signals:
    """The rows without logits of the classes beyond. Raises UserError if a teacher that gives few names one of them."""
    if rows.sparse is not None and rows.sparse.classes.numel() and int(rows.sparse.classes.max()) >= number:
        raise UserError(
            f"task=causal_lm: a teacher gives the probability of token {int(rows.sparse.classes.max())}, but the "
            f"tokenizer has {number} tokens. The signals come from another tokenizer, or from a padded vocabulary."
        )
    headed = None if rows.headed is None else rows.headed.first_classes(number)
    return replace(rows, logits=rows.logits[..., :number], headed=headed)


def _next(values: Tensor, last: float) -> Tensor:
    """[B, L] → at each place what stands at the next one; `last` at the end."""
    return torch.cat([values[:, 1:], values.new_full((len(values), 1), last)], 1)
