"""The input of the activation in which a layer ends."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distillery.models.taps.network import Network, watch

NOT_ELEMENTWISE = (nn.MultiheadAttention, nn.Softmax, nn.LogSoftmax, nn.Softmax2d)


def before_activation(network: Network, path: str, batch: Mapping[str, Tensor]) -> str:
    """The tap on the input of the activation module whose output the layer at `path` gives; `path` if there is none.

    An activation that is called as a function (`F.relu`) is no module, and is not found.
    """
    outputs: dict[str, Tensor] = {}
    ends: list[str] = []

    def note(name: str, _: Any, output: Tensor) -> None:
        if f"{name}.".startswith(f"{path}.") and _is_activation(network.net.get_submodule(name)):
            outputs[name] = output.clone()  # an in-place operation may follow it
        if name == path:
            ends[:] = [name for name, given in outputs.items() if torch.equal(given, output)]

    watch(network, batch, note)
    return f"{ends[-1]}:input" if ends else path


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__ == nn.ReLU.__module__ and not isinstance(module, NOT_ELEMENTWISE)
