"""An ensemble: the mean of what several networks predict."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.losses.signals import Signals
from distillery.models.taps.network import Network
from distillery.tasks.task import Task


class Ensemble(nn.Module):
    """Several networks as one. Its logits are the logarithm of the mean of their class probabilities.

    Paper: Born Again Neural Networks, https://arxiv.org/abs/1805.04770.
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, batch: Mapping[str, Tensor]) -> Signals:
        logits = torch.stack([network(batch).logits.float().log_softmax(-1) for network in self.networks])
        return Signals(logits.logsumexp(0) - torch.tensor(len(self.networks)).log())


def refuse_task(task: Task) -> None:
    """Refuse an ensemble for a task whose logits are no distribution.

    Raises:
        UserError: there are no probabilities to average.
    """
    if not task.is_distribution():
        raise UserError(
            f"ensemble averages class probabilities, and this task predicts a {task.prediction}. Set ensemble=null."
        )
