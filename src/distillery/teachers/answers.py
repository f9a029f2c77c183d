"""A teacher that has answered before, and whose log-probabilities were stored with its answers."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from distillery.data.answer_logprobs import NUMBER, AnswerLogprobs
from distillery.data.module import Data, Stage
from distillery.losses.levels import Available, SparseLogits
from distillery.losses.signals import Signals
from distillery.losses.sparse import log_rest
from distillery.teachers.frozen import SignalSource
from distillery.teachers.served import Spread
from distillery.teachers.without_network import TeacherWithoutNetwork


@dataclass(frozen=True)
class FromAnswers(SignalSource):
    """The signals of tokens by their numbers: k classes of each, and the others' mass."""

    stored: AnswerLogprobs

    @property
    def available(self) -> Available:
        """See `SignalSource`."""
        return Available(frozenset({"topk"}), self.stored.classes.shape[-1])

    def signals(self, batch: Mapping[str, Tensor]) -> Signals:
        """See `SignalSource`. Entry i is of token i + 1; `known` says where there is one."""
        number, stored, device = batch[NUMBER].cpu(), self.stored, batch[NUMBER].device
        following = torch.cat([number[:, 1:], torch.full_like(number[:, :1], -1)], 1)
        place = following.clamp_min(0)
        sparse = SparseLogits(
            classes=stored.classes[place].long().to(device),
            log_p=stored.log_p[place].to(device),
            log_tail=log_rest(stored.log_p[place].double()).float().to(device),
            log_p_target=stored.log_p_target[place].to(device),
            known=(stored.known[place] & (following >= 0)).to(device),
        )
        return Signals(torch.empty(len(number), 0, device=device), mask=batch["attention_mask"], sparse=sparse)


class AnswersTeacher(TeacherWithoutNetwork):
    """A teacher of which no more is known than the log-probabilities that came with its answers. It has no score.

    Args:
        name: see `Network`.
        stored: its log-probabilities for the tokens of the training texts.
        outputs: how many tokens the student's tokenizer has.
    """

    def __init__(self, name: str, stored: AnswerLogprobs, outputs: int, source: str) -> None:
        own = FromAnswers(stored)
        super().__init__(Spread(own, outputs), outputs, name, source, stored.sha256)
        self.training_signals = own
        self.remarks += stored.remarks

    def batches(self, data: Data, stage: Stage) -> str:
        """See `Teacher`."""
        return "its log-probabilities are those of its own answers"
