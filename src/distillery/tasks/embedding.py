"""A vector for each sample, so that what is alike lies near."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from distillery.core.errors import UserError
from distillery.core.numerics import at_least_float32, unit_rows
from distillery.losses.signals import Signals
from distillery.tasks.task import Batch, Labelled

CHUNK = 1000  # samples whose similarities to all others are held at once


class NearestNeighbour(Metric):
    """Share of the samples whose nearest neighbour among the others, by cosine, is of their class.

    Of embeddings [N,D] and classes [N]; all are kept until `compute`. Of several at the same distance the first is
    taken. A sample that is alone has no neighbour: 0.
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
            cosines = embeddings[own] @ embeddings.mT
            cosines[torch.arange(len(own)), own] = -torch.inf  # a sample is no neighbour of its own
            found.append(classes[cosines.argmax(1)])
        return (torch.cat(found) == classes).to(embeddings.dtype).mean()


class Embedding:
    """A vector for each sample, here called its logits. Score: accuracy of the nearest neighbour's class, in [0, 1].

    The neighbour is looked for among all other samples of the split that is scored, by cosine (leave one out). The
    classes are used for nothing else: there is no hard-label loss. What a student learns comes from its teacher, as in
    Reimers and Gurevych 2020 (https://arxiv.org/abs/2004.09813), whose loss is `loss/response=[logit_mse]`: the mean
    squared error over samples and dimensions.

    Args:
        weight: 0.

    Raises:
        UserError: another weight.
    """

    score = "nearest-neighbour accuracy"
    head = "sentence_embedding"
    perplexity = False

    def __init__(self, weight: float = 0.0) -> None:
        if weight != 0:
            raise UserError(
                f"task.weight={weight}: task=embedding has no hard-label loss to be weighed, its classes are for the "
                "score only. Set task.weight=0, and let the student learn from a teacher: loss/response=[logit_mse]."
            )
        self.weight = weight

    def outputs(self, data: Labelled) -> None:
        """None: vectors may have any number of dimensions."""
        if not data.classes:
            raise UserError(
                f"task=embedding: the samples of '{data.name}' have no classes, and the score is the accuracy of the "
                "nearest neighbour's. Choose data with classes."
            )

    def rows(self, signals: Signals, batch: Batch) -> tuple[Signals, Batch]:
        """Every sample is a row: N = B.

        Raises:
            UserError: the network does not give one vector a sample, or the targets are not one class a sample.
        """
        shape, target = list(signals.logits.shape), batch["target"]
        if len(shape) != 2:
            raise UserError(
                f"task=embedding: the network gives {shape}, not one vector for each sample. Choose a network with the "
                "head sentence_embedding, which pools the tokens."
            )
        if target.dim() != 1 or target.is_floating_point():
            raise UserError(
                f"task=embedding: the targets of this batch, {list(target.shape)} of {target.dtype}, are not one class "
                "for each sample. Choose data that have these."
            )
        return signals, batch

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """0 for each row, [N]: the classes teach nothing."""
        return at_least_float32(logits).new_zeros(len(logits))

    def metric(self, outputs: int | None) -> NearestNeighbour:
        return NearestNeighbour()

    def predict(self, logits: Tensor) -> Tensor:
        """The vector of each row itself, [N,D], in at least float32: its neighbour depends on the other rows."""
        return at_least_float32(logits)
