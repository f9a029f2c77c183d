"""The score of extractive answers: spans of contexts in windows, compared as SQuAD does."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.text import squad
from torchmetrics.utilities import dim_zero_cat

from distillery.data.questions import Question

NEVER = -1e9  # the logit of a position that may not be chosen: softmaxes at any usual temperature give 0
LONGEST = 30  # tokens of an answer


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
        start, stop = preds.double().nan_to_num(NEVER).view(2, *begin.shape)
        inside = end > begin
        none = (start + stop).masked_fill(inside | (start <= NEVER / 2), -torch.inf).amax(1)
        spans = start.masked_fill(~inside, -torch.inf)[:, :, None] + stop.masked_fill(~inside, -torch.inf)[:, None]
        possible = torch.ones(spans.shape[1:], dtype=torch.bool, device=spans.device).triu().tril(LONGEST - 1)
        best, place = spans.masked_fill(~possible, -torch.inf).flatten(1).max(1)
        first, last = place // begin.shape[1], place % begin.shape[1]
        row = torch.arange(len(begin), device=begin.device)
        self.windows.append(torch.stack([question, best, begin[row, first], end[row, last], none], 1))

    def compute(self) -> Tensor:
        windows = dim_zero_cat(self.windows).cpu()
        refusable = not all(question.answers for question in self.questions)
        predicted, right = list[Any](), list[Any]()
        for number in windows[:, 0].unique().tolist():
            own = windows[windows[:, 0] == number]
            _, best, begin, end, _ = own[own[:, 1].argmax()].tolist()
            question = self.questions[int(number)]
            empty = refusable and own[:, 4].min().item() > best
            predicted.append(
                {"id": str(number), "prediction_text": "" if empty else question.context[int(begin) : int(end)]}
            )
            answers = [*question.answers] or [""]
            right.append({"id": str(number), "answers": {"text": answers, "answer_start": [0] * len(answers)}})
        return squad(predicted, right)["exact_match" if self.exact else "f1"].double() / 100
