"""Where a layer ends in an activation: what goes into it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distillery.tapped import Network, probe

NOT_ELEMENTWISE = (nn.MultiheadAttention, nn.Softmax, nn.LogSoftmax, nn.Softmax2d)


def before_activation(network: Network, path: str, batch: Mapping[str, Tensor]) -> str:
    """The tap on the input of the activation module whose output the layer at `path` gives; `path` if there is none.

    An activation that is called as a function (`F.relu`) is no module, and is not found.
    """
    outputs: dict[str, Tensor] = {}
    ends: list[str] = []

    def note(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            outputs[name] = output.clone()  # an in-place operation may come after it

        return hook

    def compare(_: nn.Module, __: Any, output: Tensor) -> None:
        ends[:] = [name for name, given in outputs.items() if torch.equal(given, output)]

    layer = network.net.get_submodule(path)
    inner = {f"{path}.{name}" if name else path: module for name, module in layer.named_modules()}
    hooks = [m.register_forward_hook(note(name)) for name, m in inner.items() if _is_activation(m)]
    hooks.append(layer.register_forward_hook(compare))
    try:
        probe(network, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return f"{ends[-1]}:input" if ends else path


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__ == nn.ReLU.__module__ and not isinstance(module, NOT_ELEMENTWISE)
