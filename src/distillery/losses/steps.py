"""The number of training batches that a loss has seen."""

import torch
from torch import Tensor, nn


class Steps(nn.Module):
    """`done` counts the training batches that a term has seen. It is part of the checkpoint.

    It is a number rather than a buffer, since the host branches on it and must not wait for the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.done = 0

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.done)

    def set_extra_state(self, state: Tensor) -> None:
        self.done = int(state)
