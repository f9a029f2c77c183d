"""LoRA (Hu et al. 2021): a frozen network with small trained matrices beside its own, by peft."""

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from distillery.core.errors import UserError

EVERY = "all-linear"  # but the one that predicts


def add_lora(
    net: nn.Module, r: int = 8, alpha: float = 16, target_modules: str | Sequence[str] = EVERY, dropout: float = 0.0
) -> None:
    """Add to layers of `net` a product of two matrices of rank `r`, times alpha / r. It is 0 at first.

    From now on these are trained, and of the network itself only what is newly initialised (its `new_weights`).

    Args:
        target_modules: the last parts of the names of the layers, or all linear layers.

    Raises:
        UserError: peft is not installed, there are no such layers, or one shares its weights with another.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:
        raise UserError("student.lora needs peft: pip install -e '.[lm]'") from None
    new = {name: net.get_parameter(name) for name in getattr(net, "new_weights", ())}
    modules = target_modules if isinstance(target_modules, str) else [*target_modules]
    config = LoraConfig(r=r, lora_alpha=alpha, target_modules=modules, lora_dropout=dropout)  # type: ignore[arg-type]
    before = dict(net.named_parameters(remove_duplicate=False))
    try:
        with warnings.catch_warnings(action="ignore"):  # of shared weights, which are refused below
            inject_adapter_in_model(config, net)
    except ValueError as error:
        raise UserError(f"student.lora.target_modules={target_modules}: {error}") from error
    for path, layer in net.named_modules():
        if isinstance(layer, BaseTunerLayer):
            own = layer.get_base_layer().weight
            if other := [name for name, each in before.items() if each is own and name != f"{path}.weight"]:
                raise UserError(
                    f"student.lora.target_modules: {path} shares its weights with {other[0]}, which would also change "
                    "when LoRA is merged. Leave it out."
                )
    for parameter in new.values():
        parameter.requires_grad_(True)


def merged_state(net: nn.Module) -> dict[str, Tensor] | None:
    """The state dict of the network with its LoRA matrices added to its own; None if it has none."""
    layers: dict[str, Any] = {path: module for path, module in net.named_modules() if hasattr(module, "lora_A")}
    if not layers:
        return None
    state = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in net.state_dict().items()
        if not any(name.startswith(f"{path}.lora_") for path in layers)
    }
    for path, layer in layers.items():
        for adapter in layer.active_adapters:
            state[f"{path}.weight"] = state[f"{path}.weight"] + layer.get_delta_weight(adapter).detach()
    return state
