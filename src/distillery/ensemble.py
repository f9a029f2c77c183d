"""Several networks as one: the mean of what they predict."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from distillery.signals import Signals
from distillery.tapped import Network


class Ensemble(nn.Module):
    """Its logits are the logarithm of the mean of the networks' class probabilities (born-again networks)."""

    def __init__(self, networks: Sequence[Network]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, batch: Mapping[str, Tensor]) -> Signals:
        logits = torch.stack([network(batch).logits.float().log_softmax(-1) for network in self.networks])
        return Signals(logits.logsumexp(0) - torch.tensor(len(self.networks)).log())
