"""A teacher that is trained beside the student."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from distillery.core.roles import PEER
from distillery.losses.signals import Signals
from distillery.models.taps.network import Network


class Peer(Network):
    """A network that is trained beside the student, each learning from the other (deep mutual learning).

    Part of the Distiller: in its optimizer and its checkpoint. `Objective` gives it losses of its own.

    Paper: Deep Mutual Learning, https://arxiv.org/abs/1706.00384.
    """

    role = PEER
    source: ClassVar[str] = "trained beside the student"

    def forward(self, batch: Mapping[str, Tensor], training: bool = False) -> Signals:
        """As the student's, in whatever mode it is in."""
        return super().forward(batch)
