"""One loss with several teachers: a copy of the term for each, with its own projectors, and their weights."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillery.core.errors import UserError, did_you_mean
from distillery.core.numerics import at_least_float32
from distillery.core.random import uniforms
from distillery.losses.levels import Available, Level
from distillery.losses.signals import Signals
from distillery.losses.steps import Steps
from distillery.losses.term import Term

COMBINATIONS = ("mean", "confidence", "best", "random")
BY_LABEL = ("confidence", "best")  # these weight a teacher by its cross-entropy with the label
STREAM = -1000  # of random numbers: no other draw of a sample has this `view`


def confidence(teacher_logits: Tensor, target: Tensor) -> Tensor:
    """Each teacher's weight for each sample. The smaller its cross-entropy H with the label, the larger its weight.

    w_k = (1 - exp(H_k) / Σ_j exp(H_j)) / (K - 1), so that Σ_k w_k = 1 (CA-MKD; the authors' code divides by K
    once more).

    Args:
        teacher_logits: [K,N,C] of K ≥ 2 teachers.
        target: class indices [N], or soft labels [N,C].

    Returns: [K,N].

    Paper: Confidence-Aware Multi-Teacher Knowledge Distillation, https://arxiv.org/abs/2201.00007. For features the
    paper uses the predictions of the teacher's classifier on the student's features instead.
    """
    return (1 - _cross_entropy(teacher_logits, target).softmax(0)) / (len(teacher_logits) - 1)


def best(teacher_logits: Tensor, target: Tensor) -> Tensor:
    """1 for the teacher with the smallest cross-entropy with the label, 0 for the others: [K,N]. See `confidence`."""
    chosen = _cross_entropy(teacher_logits, target).argmin(0)
    return F.one_hot(chosen, len(teacher_logits)).mT.to(torch.promote_types(teacher_logits.dtype, torch.float32))


def drawn(teachers: int, index: Tensor, seed: int, step: int) -> Tensor:
    """1 for the teacher drawn for a sample at this step, 0 for the others: [K,N] for `index` [N].

    The draw is the same in every process, in a resumed run, and for every loss with these teachers. It is one per
    sample: all tokens of a text learn from the same teacher.
    """
    chosen = (uniforms(seed, step, index, STREAM, 1).squeeze(1) * teachers).long()
    return F.one_hot(chosen, teachers).mT


def _cross_entropy(teacher_logits: Tensor, target: Tensor) -> Tensor:
    logits = at_least_float32(teacher_logits)
    repeated = target.expand(len(logits), *target.shape).flatten(0, 1)
    return F.cross_entropy(logits.flatten(0, 1), repeated, reduction="none").view(len(logits), -1)


class Several(Term):
    """The weighted sum of copies of one loss, each with its own teacher.

    Args:
        terms: the copies.
        combine: the weights, which sum to 1: 'mean' (for KL divergences this is, up to a constant, the divergence from
            the teachers' mean probabilities), 'confidence', 'best' or 'random': see the functions above.
        seed: of the random draw.

    Raises:
        UserError: `combine` is unknown, or it needs one value per sample and the loss returns one for the batch.
    """

    # Not `super().__init__`: the settings of a term are those of the copies.
    def __init__(self, terms: Sequence[Term], combine: str = "mean", seed: int = 0) -> None:
        first = terms[0]
        if combine not in COMBINATIONS:
            raise UserError(f"combine={combine}: unknown value." + did_you_mean(combine, COMBINATIONS))
        if combine in BY_LABEL and not first.contract.per_sample:
            raise UserError(
                f"combine={combine} weights the teachers per sample, and {first.name} returns one value for the whole "
                "batch. Use combine=mean or combine=random."
            )
        self.contract = first.contract  # type: ignore[misc]  # that of the copies
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
    def aligned_classes(self) -> bool:
        return self.combine in BY_LABEL or super().aligned_classes

    @property
    def aligned_tokens(self) -> bool:
        return self.combine in BY_LABEL or super().aligned_tokens

    @property
    def reads_labels(self) -> bool:
        return self.combine in BY_LABEL or any(term.reads_labels for term in self.by_teacher.values())

    @property
    def needs_logits(self) -> bool:
        return self.combine in BY_LABEL or any(term.needs_logits for term in self.by_teacher.values())

    @property
    def least_level(self) -> Level | None:
        return "logits" if self.combine in BY_LABEL else cast(Term, self.copies[0]).least_level

    @property
    def counts_batches(self) -> bool:
        return self.combine == "random" or any(term.counts_batches for term in self.by_teacher.values())

    def check_available(self, available: Available) -> None:
        for term in self.by_teacher.values():
            term.check_available(available)

    def combined(
        self, values: Mapping[str, Tensor], teachers: Mapping[str, Signals], batch: Mapping[str, Tensor]
    ) -> Tensor:
        """The values of the copies ([N] or a scalar) by teacher → their weighted sum, of the same shape."""
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
