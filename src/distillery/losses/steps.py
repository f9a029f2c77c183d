"""How often a loss has been trained with."""

import torch
from torch import Tensor, nn


class Steps(nn.Module):
    """`done`: the training batches that a term has seen; it is in the checkpoint.

    A number, not a buffer: what depends on it is decided on the host, which must not wait for the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.done = 0

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.done)

    def set_extra_state(self, state: Tensor) -> None:
        self.done = int(state)
