"""One class for each token."""

from typing import Any

from torchmetrics.classification import MulticlassF1Score

from distillery.core.errors import UserError
from distillery.losses.signals import Signals
from distillery.tasks.classification import Classification
from distillery.tasks.task import Batch, Labelled, Task, Usage
from distillery.tasks.tokens import token_rows


class TokenClassification(Classification):
    """One class for each token: parts of speech, named entities. Score: macro F1 of the tokens, in [0, 1].

    It is the mean of the F1 scores of all classes, including 'O'; a class that neither occurs nor is predicted is left
    out. (Accuracy would be high for a network that labels every token 'O'.) It is not the F1 of whole entities that
    CoNLL-2003 reports (Tjong Kim Sang and De Meulder 2003), which is `metrics=[entity_f1]`: do not compare the two.

    Args:
        weight: weight of the hard-label loss in the objective.
        label_smoothing: probability mass taken from the label and spread over all classes (Szegedy et al. 2016).
        class_weights: see `Classification`.
        metrics, monitor: see `Task`.

    Raises:
        UserError: `label_smoothing` is outside [0, 1]; metrics that `Task` refuses.
    """

    score = "macro F1"
    rows_are = "tokens"
    head = "token_classification"
    pipeline_tag = "token-classification"

    def outputs(self, data: Labelled) -> int:
        if not data.classes:
            raise UserError(f"task=token_classification: the tokens of '{data.name}' have no classes.")
        self.classes = data.classes
        return len(data.classes)

    def rows(self, signals: Signals, batch: Batch) -> tuple[Signals, Batch]:
        return token_rows("token_classification", signals, batch)

    def metric(self, outputs: int | None) -> MulticlassF1Score:
        assert outputs is not None, "the number that `outputs` returns"
        return MulticlassF1Score(outputs, average="macro", validate_args=False)

    @classmethod
    def usage(cls, net: Any, tokenizer: Any) -> Usage:
        return Usage('["Words", "of", "yours", "."], is_split_into_words=True', Task.usage(net, tokenizer).lines)
