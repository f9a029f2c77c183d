"""One class for each token."""

from torchmetrics.classification import MulticlassF1Score

from distillery.core.errors import UserError
from distillery.losses.signals import Signals
from distillery.tasks.classification import Classification
from distillery.tasks.task import Batch, Labelled
from distillery.tasks.tokens import token_rows


class TokenClassification(Classification):
    """One class for each token: parts of speech, named entities. Score: macro F1 of the tokens, in [0, 1].

    That is the mean of the F1 of each class, 'O' being one of them; a class that neither occurs nor is predicted does
    not count. Accuracy would be high for a network that calls every token 'O'. The F1 of whole entities, which
    CoNLL-2003 reports (Tjong Kim Sang and De Meulder 2003), is another number: do not compare the two.

    Args:
        weight: of the hard-label loss in the objective.
        label_smoothing: mass taken from the label and spread over the classes (Szegedy et al. 2016).

    Raises:
        UserError: a `label_smoothing` outside of [0, 1].
    """

    score = "macro F1"
    head = "token_classification"
    perplexity = False

    def outputs(self, data: Labelled) -> int:
        if not data.classes:
            raise UserError(f"task=token_classification: the tokens of '{data.name}' have no classes.")
        return len(data.classes)

    def rows(self, signals: Signals, batch: Batch) -> tuple[Signals, Batch]:
        """Every token with a class is a row."""
        return token_rows("token_classification", signals, batch)

    def metric(self, outputs: int | None) -> MulticlassF1Score:  # another score
        assert outputs is not None, "the number that `outputs` gives"
        return MulticlassF1Score(outputs, average="macro", validate_args=False)
