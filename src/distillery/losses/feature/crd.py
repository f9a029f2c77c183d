"""Contrastive representation distillation (Tian, Krishnan and Isola, ICLR 2020)."""

import math
from collections.abc import Mapping
from dataclasses import field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.core.numerics import (
    Reduction,
    at_least_float32,
    full_precision,
    reduce_rows,
    require_same_shape,
    unit_rows,
)
from distillery.core.random import uniforms
from distillery.losses.layer_terms import EMBEDDING, require_features
from distillery.losses.projectors import run
from distillery.losses.settings import Fraction, Positive, PositiveInt
from distillery.losses.signals import Signals
from distillery.losses.steps import Steps
from distillery.losses.term import Contract, Layers, Term

Variant = Literal["memory", "in_batch"]
UNSEEN = -1  # the label of a row whose sample has not been seen yet
STREAM = -1  # the `view` of these random numbers; those from 0 on belong to augmentation


def crd(scores: Tensor, log_mean: Tensor | None = None, reduction: Reduction = "mean") -> Tensor:
    """Noise-contrastive estimation, one direction: -log h(positive) - Σ log(1 - h(negative)), in nats.

    h(s) = e^s / (e^s + K · mean e^s) is the probability that a pair is the positive one among K negatives. This
    is the paper's critic: the number of samples M cancels once the constant Z is estimated as M · mean e^s.

    Args:
        scores: [B, 1 + K], similarity / temperature of each anchor with its positive (first) and its negatives.
        log_mean: log of the mean of e^s, a scalar; None: of these scores. The authors keep the value of the first
            batch.
        reduction: 'mean' over anchors, or 'none': [B].

    Paper: Contrastive Representation Distillation, https://arxiv.org/abs/1910.10699. Values equal those of
    RepDistiller without its 1e-7 in the denominator, and are computed in log space.
    """
    scores = at_least_float32(scores)
    if log_mean is None:
        log_mean = mean_score(scores)
    odds = scores - log_mean - math.log(scores.shape[1] - 1)  # log h - log(1 - h)
    return reduce_rows(F.softplus(-odds[:, 0]) + F.softplus(odds[:, 1:]).sum(1), reduction)


def mean_score(scores: Tensor) -> Tensor:
    """Log of the mean of e^score, detached: the constant Z of the paper over the number of samples. A scalar."""
    scores = at_least_float32(scores.detach())
    return scores.logsumexp((0, 1)) - math.log(scores.numel())


def crd_in_batch(student: Tensor, teacher: Tensor, temperature: float = 0.07, reduction: Reduction = "mean") -> Tensor:
    """InfoNCE in both directions, in nats: from student to teacher embeddings of the batch, and back.

    Args:
        student: [B,D], of unit norm, as `teacher`.
        teacher: [B,D].
        temperature: divides the cosines.
        reduction: 'mean' over samples, or 'none': [B].

    Paper: van den Oord et al., 2018, https://arxiv.org/abs/1807.03748, equation 4; called
    InfoNCE in the ablations of the CRD paper. A batch of one sample has no negatives: 0.
    """
    require_same_shape(student, teacher)
    with full_precision(student):
        scores = at_least_float32(student) @ at_least_float32(teacher).mT / temperature
    own = -scores.diagonal()
    return reduce_rows(2 * own + scores.logsumexp(0) + scores.logsumexp(1), reduction)


class CRD(Term):
    """Contrasts the student's and teacher's embeddings of the same sample with those of different samples.

    A trainable linear layer for each network maps its features to unit vectors.

    `variant` 'memory', as the authors: a bank of each network's latest embeddings, averaged over epochs. The positive
    is the sample's own row. The negatives are rows of other classes (of other samples, if there are no class indices),
    drawn with replacement from those seen so far. The authors draw from the whole training set, seen or not, and
    without replacement. `variant` 'in_batch': `crd_in_batch`, without banks.

    The negatives are a pure function of (`seed`, training batch, sample). The banks and the constant are part of the
    checkpoint. On several processes, `gather` keeps the banks of all equal; without it, the first process's are saved.

    Args:
        samples: number of rows of the banks, an upper bound of `index`. None: filled in from the data.
        num_negatives: K, for each sample.
        dimension: of the embeddings.
        temperature: divides the cosines.
        momentum: weight of a row's old value when its sample is seen again.
        seed: of the negatives.
    """

    default_layers = EMBEDDING
    contract = Contract(
        short_name="crd",
        form="learned",
        per_sample=False,
        reads_labels=True,
        takes_soft_labels=True,
        reduction="sum over negatives and both directions, mean over samples",
        scale="about 2 (1 + log K) at the start, 21 with 16384 negatives; in_batch: 2 log B",
        needs="vectors",
        properties=frozenset({"non_negative"}),
        paper="https://arxiv.org/abs/1910.10699",
        formula=r"-\log h(s, t) - \sum_k \log(1 - h(s, t_k)) - \log h(t, s) - \sum_k \log(1 - h(t, s_k))",
        values_of="RepDistiller (the authors)",
    )

    layers: Layers | None = None
    gather: bool = True
    variant: Variant = "memory"
    samples: int | None = None
    num_negatives: PositiveInt = 16384
    dimension: PositiveInt = 128
    temperature: Positive = 0.07
    momentum: Fraction = 0.5
    seed: int = 0
    steps: Steps = field(default_factory=Steps, init=False)
    # buffers
    labels: Tensor = field(init=False)
    student_bank: Tensor = field(init=False)
    teacher_bank: Tensor = field(init=False)
    log_means: Tensor = field(init=False)

    @property
    def reads_labels(self) -> bool:
        return self.variant == "memory"

    def build(self, student: Mapping[str, torch.Size], teacher: Mapping[str, torch.Size]) -> None:
        pairs = self.pairs(student, teacher)
        if len(pairs) != 1:
            raise UserError(f"crd compares one pair of layers, and `layers` names {len(pairs)}. Name one.")
        require_features(self.name, pairs[0])
        self.embed_student = nn.Linear(pairs[0].student[1:].numel(), self.dimension)
        self.embed_teacher = nn.Linear(pairs[0].teacher[1:].numel(), self.dimension)
        if self.variant == "in_batch":
            return
        if self.samples is None:
            raise UserError("samples: give the size of the data set, an upper bound of batch['index'].")
        bound = math.sqrt(3 / self.dimension)  # rows of about unit length
        for name in ("student_bank", "teacher_bank"):
            self.register_buffer(name, torch.empty(self.samples, self.dimension).uniform_(-bound, bound))
        self.register_buffer("labels", torch.full((self.samples,), UNSEEN))
        self.register_buffer("log_means", torch.full((2,), torch.nan))

    def forward(self, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
        (features,) = self.features(student, teacher)
        embeds = self.embed_student, self.embed_teacher
        s, t = (
            unit_rows(at_least_float32(run(embed, x.flatten(1)))) for embed, x in zip(embeds, features, strict=True)
        )
        if self.variant == "in_batch":
            return crd_in_batch(s, t, self.temperature)
        index = batch["index"]
        target = batch.get("target")
        label = index if target is None or target.is_floating_point() else target
        labels = self.labels.index_copy(0, index, label)
        drawn = torch.cat([index[:, None], self._negatives(label, labels, index)], 1)
        # Copies: backward needs the banks as they are now.
        student_bank, teacher_bank = self.student_bank.clone(), self.teacher_bank.clone()
        scores = [self._scores(s, teacher_bank, drawn), self._scores(t, student_bank, drawn)]
        log_means = torch.where(self.log_means.isnan(), torch.stack([*map(mean_score, scores)]), self.log_means)
        if self.training:
            self.labels.copy_(labels)
            self.log_means.copy_(log_means)
            self._update(self.student_bank, s, index)
            self._update(self.teacher_bank, t, index)
            self.steps.done += 1
        return crd(scores[0], log_means[0]) + crd(scores[1], log_means[1])

    def _negatives(self, label: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """[B, K] rows of the banks."""
        other = (labels != UNSEEN) & (labels != label[:, None])
        other = other | ~other.any(1, keepdim=True)  # a first batch of one class: any row
        rank = other.cumsum(1, dtype=torch.int32)  # of each row among those that may be drawn, from 1
        draw = uniforms(self.seed, self.steps.done, index, STREAM, self.num_negatives)
        return torch.searchsorted(rank, (draw.double() * rank[:, -1:]).int() + 1)

    def _scores(self, anchors: Tensor, bank: Tensor, drawn: Tensor) -> Tensor:
        """[B, 1 + K]. Scores all rows of the bank and then selects: copying B · K rows would cost far more."""
        with full_precision(anchors):
            return (anchors @ at_least_float32(bank).mT / self.temperature).gather(1, drawn)

    def _update(self, bank: Tensor, embedded: Tensor, index: Tensor) -> None:
        mixed = self.momentum * bank[index] + (1 - self.momentum) * embedded.detach().to(bank.dtype)
        bank.index_copy_(0, index, unit_rows(mixed))
