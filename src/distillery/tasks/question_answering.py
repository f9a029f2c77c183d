"""Extractive answers: where in a context the answer to a question starts and ends."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from distillery.core.errors import UserError
from distillery.core.numerics import at_least_float32
from distillery.data.questions import BOTH, END, START, Question
from distillery.data.tokens import IGNORED
from distillery.losses.signals import Signals
from distillery.tasks.answers import NEVER, AnswerScore
from distillery.tasks.metrics import SCORE
from distillery.tasks.task import Batch, Labelled, Task, Usage


@runtime_checkable
class Answerable(Protocol):
    """A data set of questions."""

    @property
    def questions(self) -> Sequence[Question]: ...


class QuestionAnswering(Task):
    """The first and the last token of the answer to a question, in windows of its context. Score: SQuAD's F1.

    The network gives a logit for the start and one for the end at each token [B,L,2]. Each window has two rows, one for
    the start and one for the end; each is a distribution over its positions. Positions outside of the context are left
    out, except for the first special token ([CLS]), which stands for no answer in the window. So the loss on labels is
    the usual mean of two cross-entropies, and losses such as `kd` compare the distributions over positions.

    Args:
        weight: weight of the hard-label loss in the objective.
        metrics, monitor: see `Task`.

    Raises:
        UserError: metrics that `Task` refuses.
    """

    score = "F1"
    prediction = "position"
    rows_are = "spans"
    head = "question_answering"
    pipeline_tag = "question-answering"

    def __init__(self, weight: float = 1.0, metrics: Sequence[str] = ("exact_match",), monitor: str = SCORE) -> None:
        super().__init__(weight, metrics, monitor)

    def outputs(self, data: Labelled) -> None:
        if not isinstance(data, Answerable) or not data.questions:
            raise UserError(
                f"task=question_answering: '{data.name}' has no questions with contexts. Choose data=squad."
            )
        self.classes = data.questions  # what its metrics need

    def rows(self, signals: Signals, batch: Batch) -> tuple[Signals, Batch]:
        """All starts and then all ends: logits [B,L,2] → [2B,L], with targets, `index` and `labelled` [2B].

        Raises:
            UserError: the batch has no questions, or the network gives no two logits for each token.
        """
        logits, target = signals.logits, batch["target"]
        if "question" not in batch:
            raise UserError("task=question_answering: this batch has no questions. Choose data=squad.")
        places = [(target == each) | (target == BOTH) for each in (START, END)]
        of_rows = {**batch, "target": torch.cat([each.int().argmax(1) for each in places])}
        for key in {"index", "labelled"} & batch.keys():
            of_rows[key] = batch[key].repeat(2)
        if logits.dim() == 2 and logits.shape[1] == 0:
            return signals, of_rows
        if logits.shape != (*target.shape, 2):
            raise UserError(
                f"task=question_answering: the network returns logits {list(logits.shape)} for windows "
                f"{list(target.shape)}, but this task needs two for each token. Choose a network with the head "
                "question_answering."
            )
        both = at_least_float32(logits).movedim(-1, 0).masked_fill(target == IGNORED, NEVER)
        return replace(signals, logits=both.flatten(0, 1)), of_rows

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of each row [N], in at least float32."""
        return nn.functional.cross_entropy(at_least_float32(logits), target, reduction="none")

    def metric(self, outputs: int | None) -> AnswerScore:
        return AnswerScore(self.classes, exact=False)

    def score_rows(self, metric: Metric, logits: Tensor, loss: Tensor, batch: Batch) -> None:
        metric.update(logits, batch["question"], batch["begin"], batch["end"])

    def update_metrics(self, metrics: MetricCollection, logits: Tensor, loss: Tensor, batch: Batch) -> None:
        if metrics:
            metrics.update(**{**batch, "preds": logits})

    def predict(self, logits: Tensor) -> Tensor:
        """The likeliest position of each row, [N]."""
        return logits.argmax(-1)

    @classmethod
    def usage(cls, net: Any, tokenizer: Any) -> Usage:
        lines = [
            "found = model(**inputs)",
            "start, end = found.start_logits.argmax(), found.end_logits.argmax()",
            'print(tokenizer.decode(inputs["input_ids"][0, start : end + 1]))',
        ]
        return Usage('"A question of yours?", "A text with the answer."', lines)
