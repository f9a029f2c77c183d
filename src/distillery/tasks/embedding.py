"""One vector for each sample, such that similar samples have similar vectors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from distillery.core.errors import UserError
from distillery.core.numerics import at_least_float32, unit_rows
from distillery.losses.signals import Signals
from distillery.tasks.metrics import SCORE
from distillery.tasks.task import Batch, Labelled, Task, Usage

CHUNK = 1000  # samples whose similarities to all others are in memory at once
NEIGHBOURS = 10


class NearestNeighbour(Metric):
    """Fraction of the samples whose nearest neighbour among the others, by cosine, has the same class.

    Takes embeddings [N,D] and classes [N] and keeps them until `compute`. Of equally near neighbours the first counts.
    A single sample has no neighbour and scores 0.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    embeddings: list[Tensor]
    classes: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("embeddings", default=[], dist_reduce_fx="cat")
        self.add_state("classes", default=[], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, classes: Tensor) -> None:
        self.embeddings.append(unit_rows(at_least_float32(embeddings)))
        self.classes.append(classes)

    def compute(self) -> Tensor:
        embeddings, classes = dim_zero_cat(self.embeddings), dim_zero_cat(self.classes)
        if len(classes) < 2:
            return embeddings.new_zeros(())
        found = []
        for own in torch.arange(len(classes), device=classes.device).split(CHUNK):
            found.append(classes[_cosines_to_others(embeddings, own).argmax(1)])
        return (torch.cat(found) == classes).to(embeddings.dtype).mean()


class NeighbourAgreement(Metric):
    """How many of the nearest neighbours of a sample in one space, by cosine, are among those in another: a mean share.

    Takes the embeddings [N,D] and [N,E] of the same samples and keeps them until `compute`. Each sample has the ten
    nearest of the others as its neighbours, or all of fewer others. A single sample has none and scores 0.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    embeddings: list[Tensor]
    references: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("embeddings", default=[], dist_reduce_fx="cat")
        self.add_state("references", default=[], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, references: Tensor) -> None:
        self.embeddings.append(unit_rows(at_least_float32(embeddings)))
        self.references.append(unit_rows(at_least_float32(references)))

    def compute(self) -> Tensor:
        both = dim_zero_cat(self.embeddings), dim_zero_cat(self.references)
        number = len(both[0])
        if number < 2:
            return both[0].new_zeros(())
        k = min(NEIGHBOURS, number - 1)
        shared = 0
        for own in torch.arange(number, device=both[0].device).split(CHUNK):
            ours, theirs = (_cosines_to_others(each, own).topk(k).indices for each in both)
            shared += int((ours[:, :, None] == theirs[:, None]).sum())
        return both[0].new_tensor(shared / (k * number))


def _cosines_to_others(embeddings: Tensor, own: Tensor) -> Tensor:
    """Of the samples at `own` [M] to all, [M,N]; that of a sample to itself is lower than all others."""
    cosines = embeddings[own] @ embeddings.mT
    cosines[torch.arange(len(own)), own] = -torch.inf
    return cosines


class Embedding(Task):
    """One vector for each sample, in the place of logits. Score: nearest-neighbour accuracy, in [0, 1].

    It is the fraction of the split's samples whose nearest neighbour, by cosine among all others, has the same class.
    Where the data have no classes, the score is the neighbour agreement with the teacher: the share of each sample's
    ten nearest neighbours that it also has among the teacher's vectors. It compares what a search finds with either
    network, and works for vectors of different widths, too.

    The classes serve for the score only. There is no hard-label loss: the student learns from its teacher, as in
    Reimers and Gurevych 2020 (https://arxiv.org/abs/2004.09813), whose loss is `loss/response=[logit_mse]`, the mean
    squared error over samples and dimensions.

    Args:
        weight: must be 0.
        metrics, monitor: see `Task`.

    Raises:
        UserError: `weight` is not 0; metrics that `Task` refuses.
    """

    score: str = "nearest-neighbour accuracy"  # type: ignore[misc]  # depends on the data: see `outputs`
    prediction = "vector"
    head = "sentence_embedding"
    pipeline_tag = "sentence-similarity"

    def __init__(self, weight: float = 0.0, metrics: Sequence[str] = (), monitor: str = SCORE) -> None:
        super().__init__(weight, metrics, monitor)
        if weight != 0:
            raise UserError(
                f"weight={weight}: task=embedding has no hard-label loss; the classes serve for the score only. "
                "Set task.weight=0 and let the student learn from a teacher: loss/response=[logit_mse]."
            )

    def outputs(self, data: Labelled) -> None:
        if not data.classes:
            self.needs_references, self.score = True, "neighbour agreement"

    def rows(self, signals: Signals, batch: Batch) -> tuple[Signals, Batch]:
        """Every sample is a row: N = B.

        Raises:
            UserError: the network does not return one vector for each sample, or the targets are neither one class each
                nor vectors.
        """
        shape, target = list(signals.logits.shape), batch["target"]
        if len(shape) != 2:
            raise UserError(
                f"task=embedding: the network returns {shape}, not one vector for each sample. Choose a network with "
                "the head sentence_embedding, which pools the tokens."
            )
        if target.dim() != (2 if target.is_floating_point() else 1):
            raise UserError(
                f"task=embedding: the targets of this batch, {list(target.shape)} of {target.dtype}, are not one class "
                "for each sample. Choose data that have one, or none."
            )
        return signals, batch

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """0 for each row, [N]: there is no hard-label loss."""
        return at_least_float32(logits).new_zeros(len(logits))

    def metric(self, outputs: int | None) -> Metric:
        return NeighbourAgreement() if self.needs_references else NearestNeighbour()

    def predict(self, logits: Tensor) -> Tensor:
        """The vectors themselves, [N,D], in at least float32: the neighbours depend on the other rows."""
        return at_least_float32(logits)

    @classmethod
    def usage(cls, net: Any, tokenizer: Any) -> Usage:
        lines = [
            "states = model(**inputs).last_hidden_state",
            'counts = inputs["attention_mask"].unsqueeze(-1)',
            "embedding = (states * counts).sum(1) / counts.sum(1)",
        ]
        if getattr(net, "normalise", False):
            lines.append("embedding = embedding / embedding.norm(dim=-1, keepdim=True)")
        return super().usage(net, tokenizer)._replace(lines=lines)
