"""A teacher that is trained together with the student."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from distillery.core.roles import PEER
from distillery.losses.signals import Signals
from distillery.models.taps.network import Network


class Peer(Network):
    """A network that is trained together with the student, each learning from the other (deep mutual learning).

    It is part of the Distiller, its optimizer and its checkpoint. `Objective` computes its losses.

    Paper: Deep Mutual Learning, https://arxiv.org/abs/1706.00384.
    """

    role = PEER
    source: ClassVar[str] = "trained beside the student"

    def forward(self, batch: Mapping[str, Tensor], training: bool = False) -> Signals:
        """The same in training and evaluation: its mode is that of the module."""
        return super().forward(batch)
