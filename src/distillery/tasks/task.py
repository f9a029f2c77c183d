"""What a task is: the hard-label loss, the score, and which rows of logits count.

A new task is one subclass of `Task` in a file of its own, one `configs/task/<name>.yaml`, and one test. The rest of the
package asks the task for what it needs to know and never which task it is.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from distillery.core.numerics import at_least_float32
from distillery.losses.signals import Signals
from distillery.tasks.metrics import SCORE, check_metrics, make_metrics, wrong_where_broken

Batch = Mapping[str, Tensor]


class Labelled(Protocol):
    """What a task asks of a data set."""

    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...


class Usage(NamedTuple):
    """How an exported transformer is called, as Python source for its model card."""

    text: str  # the first arguments of the tokenizer's call
    lines: list[str]  # what follows, with `model` and `inputs` defined


class Task(Protocol):
    """What the labels mean. Subclasses state the class variables without a default and implement the methods.

    Args:
        weight: of the hard-label loss in the objective.
        metrics: more figures beside the score, by their names in `metrics.CATALOGUE`.
        monitor: what a validation logs by which students are chosen, `val/score`, `val/loss` or `val/<metric>`.

    Raises:
        UserError: a metric that does not exist or does not suit the predictions; a monitor that is not logged.
    """

    score: ClassVar[str]  # the name of the score in tables
    higher_is_better: ClassVar[bool] = True
    score_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    perplexity: ClassVar[bool] = False  # whether exp(mean loss) is reported
    # What a row of logits stands for: a distribution over the data's classes, over the vocabulary or over the positions
    # of a text, independent labels of which any number applies, or just numbers.
    prediction: ClassVar[Literal["class", "token", "position", "labels", "number", "vector"]] = "class"
    rows_are: ClassVar[Literal["samples", "tokens", "pixels", "spans"]] = "samples"  # what the rows of logits belong to
    masked: ClassVar[bool] = False  # whether it predicts masked tokens (`data.mask`)
    generates: ClassVar[bool] = False  # whether a network's predictions continue a text (`rollouts`)
    needs_references: bool = False  # whether the score compares with a teacher's predictions, see `with_references`
    exact_match: bool = False  # whether the share of samples of which every row is predicted rightly is reported
    padded_outputs: ClassVar[bool] = False  # whether a network may give more logits than `outputs`: `rows` cuts them
    head: ClassVar[str]  # of a transformer: a key of `distillery.models.text.transformer.HEADS`
    pipeline_tag: ClassVar[str]  # what the Hugging Face hub calls the task
    weight: float  # of the hard-label loss in the objective
    # Logits of the student and its teachers are computed for so many rows at a time in training; None: all at once.
    rows_per_chunk: int | None = None
    metrics: Sequence[str] = ()
    monitor: str = SCORE
    classes: Sequence[Any] = ()  # the data's classes by name, or questions, for metrics: set by `outputs`

    def __init__(self, weight: float = 1.0, metrics: Sequence[str] = (), monitor: str = SCORE) -> None:
        check_metrics(metrics, monitor, self.prediction, self.rows_are == "tokens")
        self.weight = weight
        self.metrics = [*metrics]
        self.monitor = monitor

    @classmethod
    def is_distribution(cls) -> bool:
        """Whether the softmax of a row of logits is a distribution, which teachers and students can compare."""
        return cls.prediction in ("class", "token", "position")

    @classmethod
    def is_of_classes(cls) -> bool:
        """Whether each logit stands for a class or a label of the data, by its place among `Labelled.classes`."""
        return cls.prediction in ("class", "labels")

    @classmethod
    def fits(cls, width: int, outputs: int | None) -> bool:
        """Whether networks may give `width` logits in a row where the task has `outputs`."""
        return outputs is None or width == outputs or (cls.padded_outputs and width > outputs)

    def outputs(self, data: Labelled) -> int | None:
        """The number of logits in a row for these data; None: any number.

        Raises:
            UserError: the data have no labels of this kind.
        """
        raise NotImplementedError

    def rows(self, signals: Signals, batch: Batch) -> tuple[Signals, Batch]:
        """The rows of logits that count, [N, C], and the batch with `target` and `index` of each row, [N].

        `index` is the position of the row's sample in the data, and `labelled`, if the batch has it, whether that
        sample has a label. Everything but the logits stays as it is. Logits [B, 0], of a network that was stopped
        before its head, are returned as they are, with the same rows of the batch. By default every sample is a row:
        N = B.
        """
        return signals, batch

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The hard-label loss of each row, [N], in at least float32."""
        raise NotImplementedError

    def metric(self, outputs: int | None) -> Metric:
        """Computes the score. It is updated by `score_rows`, with batches of at least one row."""
        raise NotImplementedError

    def score_rows(self, metric: Metric, logits: Tensor, loss: Tensor, batch: Batch) -> None:
        """Update the metric with rows: by default with their logits and targets.

        Args:
            loss: of each row, as `loss` gives it.
            batch: what `rows` says of them.
        """
        metric.update(logits, batch["target"])

    def chosen_metrics(self, outputs: int | None) -> MetricCollection:
        """Compute the figures that `metrics` names. They are updated by `update_metrics`, with at least one row."""
        return make_metrics(self.metrics, self.prediction, outputs, self.classes)

    def update_metrics(self, metrics: MetricCollection, logits: Tensor, loss: Tensor, batch: Batch) -> None:
        """Update the chosen metrics with rows; the arguments are those of `score_rows`.

        `preds` are the probabilities of classes, in float64, where few are rounded to 0 or 1; the logits of a
        vocabulary; and otherwise what `predict` gives. A row of classes with NaN counts as wrong.
        """
        if not metrics:
            return
        preds: Tensor | None = self.predict(logits)
        if self.is_distribution() or self.is_of_classes():
            preds = wrong_where_broken(logits, batch["target"])
            preds = self.probabilities(preds.double()) if self.is_of_classes() else preds
        metrics.update(**{**batch, "preds": preds, "loss": loss})

    def probabilities(self, logits: Tensor) -> Tensor | None:
        """The probability of each class in each row, [N,C], in at least float32; None: classes are not predicted.

        For vocabularies it is None as well: the probabilities of a test split's tokens would take gigabytes.
        """
        return at_least_float32(logits).softmax(-1) if self.prediction == "class" else None

    def measured(self, data: Labelled, stride: int | None = None) -> str:
        """What the score depends on besides network and text, for the record and the report; empty: nothing.

        Args:
            stride: of the windows of tokens in which texts are read; None: as the data are served.
        """
        return ""

    def predict(self, logits: Tensor) -> Tensor:
        """The prediction of each row, [N, ...]."""
        raise NotImplementedError

    @classmethod
    def usage(cls, net: Any, tokenizer: Any) -> Usage:
        """How to ask an exported transformer for a prediction.

        Args:
            net: the network.
            tokenizer: the tokenizer it is exported with.
        """
        return Usage('"A text of yours."', ["logits = model(**inputs).logits"])


def row_labels(task: Task, batch: Batch) -> Batch:
    """What `Task.rows` says of the rows of a batch, without any network's signals."""
    samples = len(next(iter(batch.values())))
    return task.rows(Signals(torch.empty(samples, 0)), batch)[1]


def labelled_rows(rows: Signals, batch: Batch, samples: Batch) -> tuple[Signals, Batch]:
    """The rows, and the samples, that have a label.

    Args:
        rows, batch: what `Task.rows` returns.
        samples: the batch that it was given.

    Returns: the signals, and what `labelled_part` says. Where all samples have a label, both are returned as they are.
    """
    if "labelled" not in samples:
        return rows, batch
    return rows.take(batch["labelled"], samples["labelled"]), labelled_part(batch)


def labelled_part(batch: Batch) -> Batch:
    """What a batch says of its labelled rows or samples: `target`, `index` and, of tokens, `position` and `bytes`."""
    known = [key for key in ("target", "index", "position", "bytes") if key in batch]
    return {key: batch[key][batch["labelled"]] for key in known}
