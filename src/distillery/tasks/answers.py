"""The score of extractive answers: spans of contexts in windows, compared as SQuAD does."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.text import squad
from torchmetrics.utilities import dim_zero_cat

from distillery.data.questions import Question

NEVER = -1e9  # the logit of a position that may not be chosen: softmaxes at any usual temperature give 0
LONGEST = 30  # tokens of an answer


class Answer(NamedTuple):
    """What is predicted for a question.

    Attributes:
        question: its number.
        text: the likeliest span of its context.
        logit: the sum of the span's start logit and end logit.
        none: the lowest such sum, of all windows, for no answer.
        total: the logarithm of the sum of exp(logit) over the spans of all windows and of exp(none).
    """

    question: int
    text: str
    logit: float
    none: float
    total: float

    @property
    def probability(self) -> float:
        """Of the span, among all spans and no answer."""
        return math.exp(self.logit - self.total)

    @property
    def probability_of_none(self) -> float:
        """That there is no answer."""
        return math.exp(self.none - self.total)


def likeliest_spans(logits: Tensor, question: Tensor, begin: Tensor, end: Tensor) -> Tensor:
    """Of each window, float64 [B,6]: its question, the likeliest span's logit, and where it begins and ends in the
    context; the logit of no answer; and the logarithm of the sum of exp(logit) over all spans.

    A span has at most 30 tokens, and its logit is the sum of its start logit and end logit.

    Args:
        logits: of starts and then of ends, [2B,L].
        question: the number of each window's, [B].
        begin, end: which characters of the context each token stands for, [B,L].
    """
    start, stop = logits.double().nan_to_num(NEVER).view(2, *begin.shape)
    inside = end > begin
    none = (start + stop).masked_fill(inside | (start <= NEVER / 2), -torch.inf).amax(1)
    spans = start.masked_fill(~inside, -torch.inf)[:, :, None] + stop.masked_fill(~inside, -torch.inf)[:, None]
    possible = torch.ones(spans.shape[1:], dtype=torch.bool, device=spans.device).triu().tril(LONGEST - 1)
    spans = spans.masked_fill(~possible, -torch.inf).flatten(1)
    best, place = spans.max(1)
    first, last = place // begin.shape[1], place % begin.shape[1]
    row = torch.arange(len(begin), device=begin.device)
    return torch.stack([question, best, begin[row, first], end[row, last], none, spans.logsumexp(1)], 1)


def answers(windows: Tensor, questions: Sequence[Question]) -> Iterator[Answer]:
    """The answer to each question that has a window, by its number.

    Args:
        windows: see `likeliest_spans`.
        questions: by their number.
    """
    windows = windows.cpu()
    for number in windows[:, 0].unique().int().tolist():
        own = windows[windows[:, 0] == number]
        _, logit, begin, end, _, _ = own[own[:, 1].argmax()].tolist()
        none = own[:, 4].min()
        total = torch.cat([own[:, 5], none[None]]).logsumexp(0)
        yield Answer(number, questions[number].context[int(begin) : int(end)], logit, none.item(), total.item())


class AnswerScore(Metric):
    """Mean of F1 or of exact match over questions, as SQuAD's official script computes them, in [0, 1].

    The answer to a question is the span of at most 30 tokens, in any of its windows, with the greatest sum of start
    logit and end logit. If some of the questions have no answer, the answer is empty where the logits of no answer, the
    lowest of all windows, exceed that sum (Devlin et al. 2019, section 4.3, and their code). Answers are compared
    without case, punctuation and articles; of several right answers the nearest counts.

    Args:
        questions: by their number.
        exact: exact match instead of F1.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    windows: list[Tensor]

    def __init__(self, questions: Sequence[Question], exact: bool) -> None:
        super().__init__()
        self.questions = questions
        self.exact = exact
        self.add_state("windows", default=[], dist_reduce_fx="cat")

    def update(self, preds: Tensor, question: Tensor, begin: Tensor, end: Tensor) -> None:
        """Of windows: logits of starts and ends [2B,L], number of the question [B], characters of each token [B,L]."""
        self.windows.append(likeliest_spans(preds, question, begin, end))

    def compute(self) -> Tensor:
        refusable = not all(question.answers for question in self.questions)
        predicted, right = list[Any](), list[Any]()
        for found in answers(dim_zero_cat(self.windows), self.questions):
            number, text = str(found.question), "" if refusable and found.none > found.logit else found.text
            predicted.append({"id": number, "prediction_text": text})
            given = [*self.questions[found.question].answers] or [""]
            right.append({"id": number, "answers": {"text": given, "answer_start": [0] * len(given)}})
        return squad(predicted, right)["exact_match" if self.exact else "f1"].double() / 100
