"""The end of a network: its linear head and what follows."""

from typing import NamedTuple

from torch import Tensor, nn

from distillery.losses.levels import Headed


class Head(NamedTuple):
    """The path of the linear layer; a factor of its output; c of c · tanh(output / c), the soft-cap of Gemma 2."""

    path: str
    scale: float = 1.0
    softcap: float | None = None

    def headed(self, net: nn.Module, hidden: Tensor) -> Headed:
        """The logits, from the input of the layer."""
        linear = net.get_submodule(self.path)
        assert isinstance(linear, nn.Linear)
        return Headed(hidden if self.scale == 1 else hidden * self.scale, linear.weight, linear.bias, self.softcap)


class BeforeHead(Exception):
    """The head has been reached: the rest of the network need not run."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden
