"""Where the signals of a teacher come from while a student is trained."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from distillery.losses.signals import Signals


class SignalSource(Protocol):
    """Gives the signals of a teacher for training batches.

    A `Teacher` is one itself: it computes them. A `TeacherCache` computes them once and looks them up from then on.
    Assign another one to `Teacher.training_signals`.
    """

    def signals(self, batch: Mapping[str, Tensor]) -> Signals:
        """The signals of the batch's samples, on the device of the batch: every tap that the losses read, no graph."""
        ...
