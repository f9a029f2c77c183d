"""Quantization-aware training by torchao: linear layers trained with the rounding of their integer versions."""

from typing import Any, Literal, get_args

import torch
from torch import nn

from distillery.core.errors import UserError
from distillery.models.classifier import classifier_paths

Scheme = Literal["int8_dynamic", "8da4w", "int4_weight_only", "int2_weight_only"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
GROUP = 32  # weights of 4 or 2 bits that share a scale


def simulate(net: nn.Module, scheme: Scheme) -> str:
    """Have the linear layers of `net`, but the classifier, round as integers would, in place; returns a remark.

    Each computes x̂ Ŵᵀ + b, where Ŵ and x̂ are its weights and inputs, rounded to integers times a scale, in floating
    point. Gradients pass the rounding as if it were not there (straight-through). Names and values of the parameters
    stay as they are, so that weights can be loaded before or after.

    - int8_dynamic: weights in int8, each row with a scale; inputs in int8, each token with a scale and a zero point of
      its own, which are found as it comes.
    - 8da4w: the same inputs; weights in int4, each `GROUP` of a row with a scale.
    - int4_weight_only, int2_weight_only: weights in so many bits, with such scales, and inputs as they are.

    Raises:
        UserError: torchao is not installed, there is no such layer, or the rows of one cannot be divided into groups.
    """
    layers = _layers(net)
    if not layers:
        raise UserError(
            f"student.qat={scheme} rounds linear layers, and the {type(net).__name__} has none but its classifier. "
            "Convolutional networks are quantised after training: distill-export to=[onnx_int8_static]."
        )
    if scheme != "int8_dynamic" and (odd := [path for path, each in layers.items() if each.in_features % GROUP]):
        raise UserError(
            f"student.qat={scheme}: {odd[0]} has {layers[odd[0]].in_features} inputs, not a multiple of {GROUP}. "
            "Use int8_dynamic."
        )
    _quantize(net, scheme, "prepare", {*layers.values()})
    net.qat = scheme  # type: ignore[assignment]  # the hash of its weights tells it from the network in float
    return f"{len(layers)} linear layers are trained as {scheme}"


def convert(net: nn.Module, scheme: Scheme) -> None:
    """Turn the layers of `simulate` into those with integer weights, in place. They compute the same."""
    _quantize(net, scheme, "convert")


def _layers(net: nn.Module) -> dict[str, nn.Linear]:
    head = {net.get_submodule(path) for path in classifier_paths(net)}
    return {path: each for path, each in net.named_modules() if type(each) is nn.Linear and each not in head}


def _quantize(net: nn.Module, scheme: Scheme, step: str, layers: set[nn.Module] | None = None) -> None:
    try:
        from torchao.quantization import (
            Int8DynamicActivationIntxWeightConfig,
            IntxWeightOnlyConfig,
            PerAxis,
            PerGroup,
            quantize_,
        )
        from torchao.quantization.qat import QATConfig
    except ImportError:
        raise UserError(f"student.qat={scheme} needs torchao: pip install -e '.[lm]'") from None
    dtypes: Any = torch  # whose stubs lack those of few bits
    base = {
        "int8_dynamic": Int8DynamicActivationIntxWeightConfig(torch.int8, PerAxis(0)),
        "8da4w": Int8DynamicActivationIntxWeightConfig(dtypes.int4, PerGroup(GROUP)),
        "int4_weight_only": IntxWeightOnlyConfig(dtypes.int4, PerGroup(GROUP)),
        "int2_weight_only": IntxWeightOnlyConfig(dtypes.int2, PerGroup(GROUP)),
    }[scheme]
    chosen = None if layers is None else lambda module, _: module in layers
    quantize_(net, QATConfig(base, step=step), filter_fn=chosen)
