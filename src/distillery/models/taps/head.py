"""The end of a network: its linear head and what follows."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from distillery.core.numerics import at_least_float32
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


def is_plain(layer: Any) -> bool:
    """Whether it is a linear layer, neither quantised nor with an adapter."""
    return type(layer) is nn.Linear and type(layer.weight) is nn.Parameter and layer.weight.is_floating_point()


@contextmanager
def precise(layer: Any) -> Iterator[None]:
    """Within, the layer's product is that of `Headed.logits`, in at least float32, if the layer is plain."""
    if not is_plain(layer):
        yield
        return
    weight = at_least_float32(layer.weight)  # once, and not for each token
    layer.forward = lambda hidden: Headed(hidden, weight, layer.bias).logits()
    try:
        yield
    finally:
        del layer.forward
