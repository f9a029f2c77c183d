"""Several networks as one: the mean of what they predict."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.losses.signals import Signals
from distillery.models.taps.network import Network
from distillery.tasks.embedding import Embedding
from distillery.tasks.regression import Regression
from distillery.tasks.task import Task


class Ensemble(nn.Module):
    """Its logits are the logarithm of the mean of the networks' class probabilities (born-again networks)."""

    def __init__(self, networks: Sequence[Network]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, batch: Mapping[str, Tensor]) -> Signals:
        logits = torch.stack([network(batch).logits.float().log_softmax(-1) for network in self.networks])
        return Signals(logits.logsumexp(0) - torch.tensor(len(self.networks)).log())


def refuse_task(task: Task) -> None:
    """Refuse an ensemble for a task that has numbers or vectors in the place of class probabilities."""
    if isinstance(task, Regression | Embedding):
        raise UserError("ensemble: students vote on classes, and this task has none. Set ensemble=null.")
