"""Frozen teachers beside the student: their forwards on a CUDA stream of their own."""

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from distillery.losses.signals import Signals
from distillery.teachers.frozen import Teacher


class SideStream:
    """A CUDA stream, on which teachers run while the current stream has the student's forward.

    A GPU that one network does not fill works on both at a time. The values are those of one stream.
    """

    @cached_property
    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream()

    def start(self, teachers: Mapping[str, Teacher], batch: Mapping[str, Tensor]) -> dict[str, Signals]:
        """Signals for the batch, by teacher. They may be read after `join`.

        The forwards begin when the current stream has done what it has been given so far.
        """
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            signals = {name: teacher(batch, training=True) for name, teacher in teachers.items()}
        for tensor in batch.values():
            tensor.record_stream(self._stream)
        return signals

    def join(self, signals: Mapping[str, Signals]) -> None:
        """Let the current stream wait for the forwards, before it reads these signals."""
        current = torch.cuda.current_stream()
        current.wait_stream(self._stream)

        def read(tensor: Tensor) -> Tensor:
            tensor.record_stream(current)  # its memory is not given to others before this stream has read it
            return tensor

        for each in signals.values():
            each.each(read)
