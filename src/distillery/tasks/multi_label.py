"""Any number of labels for each sample."""

from typing import Any

from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.functional.classification import multilabel_average_precision

from distillery.core.errors import UserError
from distillery.core.numerics import at_least_float32, require_same_shape
from distillery.tasks.metrics import OneVersusRest, wrong_where_broken
from distillery.tasks.task import Batch, Labelled, Task, Usage


class MultiLabel(Task):
    """Any number of labels for each sample, an image or a text. Score: mean average precision (mAP), in [0, 1].

    It is the mean over the labels of the average precision of the samples ranked by that label's logit, as reported for
    COCO, Pascal VOC and Open Images. Unlike the F1 of a threshold at 0.5, which is usual for texts
    (`metrics=[micro_f1,macro_f1]`), it does not change where a loss only shifts all logits of a label, as a teacher's
    softened targets may. Labels that do not occur in a split are left out.

    The loss is the binary cross-entropy, averaged over the labels, as in PyTorch and transformers. The labels are
    independent: their probabilities are sigmoids, and a softmax over them has no meaning. Losses on distributions over
    classes are refused; `loss/response=[bernoulli_kd]` compares the labels' probabilities.

    Args:
        weight: weight of the hard-label loss in the objective.
        metrics, monitor: see `Task`.
    """

    score = "mAP"
    prediction = "labels"
    head = "sequence_classification"
    pipeline_tag = "text-classification"

    def outputs(self, data: Labelled) -> int:
        if not data.classes:
            raise UserError(
                f"task=multi_label: the samples of '{data.name}' have no labels. Set data.source.label to the column "
                "of their lists, and data.source.multi_label=true."
            )
        return len(data.classes)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The mean binary cross-entropy of each row's labels [N], in at least float32, with 0 and 1 [N,C]."""
        logits = at_least_float32(logits)
        require_same_shape(logits, target)
        return nn.functional.binary_cross_entropy_with_logits(logits, target.to(logits), reduction="none").mean(-1)

    def metric(self, outputs: int | None) -> Metric:
        return OneVersusRest(multilabel_average_precision, with_negatives=False)

    def score_rows(self, metric: Metric, logits: Tensor, loss: Tensor, batch: Batch) -> None:
        target = batch["target"]
        metric.update(self.probabilities(wrong_where_broken(logits, target).double()), target)

    def predict(self, logits: Tensor) -> Tensor:
        """1 for each label whose probability is above 0.5, [N,C]."""
        return (logits > 0).long()

    def probabilities(self, logits: Tensor) -> Tensor:
        return at_least_float32(logits).sigmoid()

    @classmethod
    def usage(cls, net: Any, tokenizer: Any) -> Usage:
        text, lines = super().usage(net, tokenizer)
        named = "[model.config.id2label[label] for label, p in enumerate(logits[0].sigmoid().tolist()) if p > 0.5]"
        return Usage(text, [*lines, named])
