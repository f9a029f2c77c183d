"""One loss with several teachers: a copy of the term for each, with projectors of its own, and how they are weighed."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillery.core.errors import UserError, did_you_mean
from distillery.core.numerics import at_least_float32
from distillery.core.random import uniforms
from distillery.losses.signals import Signals
from distillery.losses.steps import Steps
from distillery.losses.term import Term

COMBINATIONS = ("mean", "confidence", "best", "random")
BY_LABEL = ("confidence", "best")  # these look at how well each teacher knows the label
STREAM = -1000  # of random numbers: no other draw of a sample has this `view`


def confidence(teacher_logits: Tensor, target: Tensor) -> Tensor:
    """Each teacher's weight for each sample: the greater, the smaller its cross-entropy H with the label.

    w_k = (1 - exp(H_k) / Σ_j exp(H_j)) / (K - 1), so that Σ_k w_k = 1 (CA-MKD; the authors' code divides by K once
    more).

    Args:
        teacher_logits: [K,N,C] of K ≥ 2 teachers.
        target: class indices [N], or soft labels [N,C].

    Returns: [K,N].

    Paper: Confidence-Aware Multi-Teacher Knowledge Distillation, https://arxiv.org/abs/2201.00007. For features it
    weighs by what the teacher's classifier makes of the student's features instead.
    """
    return (1 - _cross_entropy(teacher_logits, target).softmax(0)) / (len(teacher_logits) - 1)


def best(teacher_logits: Tensor, target: Tensor) -> Tensor:
    """1 for the teacher with the smallest cross-entropy with the label, 0 for the others: [K,N]; arguments as above."""
    chosen = _cross_entropy(teacher_logits, target).argmin(0)
    return F.one_hot(chosen, len(teacher_logits)).mT.to(torch.promote_types(teacher_logits.dtype, torch.float32))


def drawn(teachers: int, index: Tensor, seed: int, step: int) -> Tensor:
    """1 for a teacher that is drawn for each sample and step, 0 for the others: [K,N] for `index` [N].

    The same draw in every process and in a resumed run, and for every loss that has these teachers.
    """
    chosen = (uniforms(seed, step, index, STREAM, 1).squeeze(1) * teachers).long()
    return F.one_hot(chosen, teachers).mT


def _cross_entropy(teacher_logits: Tensor, target: Tensor) -> Tensor:
    logits = at_least_float32(teacher_logits)
    repeated = target.expand(len(logits), *target.shape).flatten(0, 1)
    return F.cross_entropy(logits.flatten(0, 1), repeated, reduction="none").view(len(logits), -1)


class Several(Term):
    """`terms`, one loss for each of several teachers, as one loss: the weighted sum of theirs.

    Args:
        terms: copies of one term, each with a teacher of its own.
        combine: the weights, which sum to 1. 'mean' (of KL divergences: up to a constant, that to the teachers' mean
            probabilities), 'confidence', 'best' or 'random': see the functions above.
        seed: of the random draw.

    Raises:
        UserError: an unknown `combine`, or one that wants a value for each sample of a loss that has none.
    """

    def __init__(self, terms: Sequence[Term], combine: str = "mean", seed: int = 0) -> None:
        nn.Module.__init__(self)  # what else a term has, the copies have
        first = terms[0]
        if combine not in COMBINATIONS:
            raise UserError(f"combine={combine}: there is no such thing." + did_you_mean(combine, COMBINATIONS))
        if combine in BY_LABEL and not first.contract.per_sample:
            raise UserError(
                f"combine={combine} weighs the teachers of each sample, and {first.contract.short_name} is one value "
                "for the whole batch. Use combine=mean or combine=random."
            )
        self.contract = first.contract  # type: ignore[misc]  # of the class that it has copies of
        self.copies = nn.ModuleList(terms)
        self.combine = combine
        self.seed = seed
        self.steps = Steps()

    @property  # type: ignore[misc]  # every copy has the weight
    def weight(self) -> float:
        return cast(Term, self.copies[0]).weight

    @weight.setter
    def weight(self, value: float) -> None:
        for term in self.by_teacher.values():
            term.weight = value

    @property
    def by_teacher(self) -> dict[str, Term]:
        terms = cast(Sequence[Term], self.copies)
        return {term.teacher: term for term in terms}

    @property
    def needs_logits(self) -> bool:
        return self.combine in BY_LABEL or any(term.needs_logits for term in self.by_teacher.values())

    def combined(
        self, values: Mapping[str, Tensor], teachers: Mapping[str, Signals], batch: Mapping[str, Tensor]
    ) -> Tensor:
        """What each copy gives ([N] or a scalar), by teacher → their weighted sum, of the same shape."""
        stacked = torch.stack(list(values.values()))
        if self.combine == "mean":
            return stacked.mean(0)
        if self.combine == "random":
            index = batch["index"] if stacked.dim() > 1 else batch["index"].new_zeros(1)
            weights = drawn(len(stacked), index, self.seed, self.steps.done)
            self.steps.done += 1
        else:
            logits = torch.stack([teachers[name].logits for name in values])
            weights = {"confidence": confidence, "best": best}[self.combine](logits, batch["target"])
        return (weights.view_as(stacked) * stacked).sum(0)
