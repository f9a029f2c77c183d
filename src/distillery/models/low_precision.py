"""The weights of a network that is not trained in fewer bits, and how much that changes what it gives."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.core.numerics import kl, log_softmax
from distillery.models.classifier import classifier_paths
from distillery.models.taps.network import Network, probe

Precision = Literal["bf16", "int8", "int4"]
GROUP = 32  # weights that share a scale in int4
COMPARED = 1024  # tokens at most on which two precisions are compared, because of the size of their logits


def lower_precision(net: nn.Module, precision: Precision) -> None:
    """Keep the weights in fewer bits, in place.

    bf16: all of them, and it computes in bfloat16. int8 and int4 (torchao, weights only): those of linear layers but
    the classifier, each row with a scale in int8, each `GROUP` of a row in int4; they are multiplied in the precision
    of their inputs. int4 is stored in a byte each: it shows what four bits do, and takes no less memory than int8.

    Raises:
        UserError: torchao is not installed, there are no such layers, or their rows cannot be divided into groups.
    """
    if precision == "bf16":
        net.to(torch.bfloat16)
        return
    try:
        from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, MappingType, PerGroup, quantize_
    except ImportError:
        raise UserError(f"precision={precision} needs torchao: pip install -e '.[lm]'") from None
    head = {net.get_submodule(path) for path in classifier_paths(net)}
    layers = {path: module for path, module in net.named_modules() if type(module) is nn.Linear and module not in head}
    if not layers:
        raise UserError(
            f"precision={precision} is for linear layers, of which this network has none but its classifier. Use bf16."
        )
    if precision == "int4" and (odd := [path for path, each in layers.items() if each.in_features % GROUP]):
        raise UserError(
            f"precision=int4: {odd[0]} has {layers[odd[0]].in_features} inputs, not a multiple of {GROUP}. Use int8."
        )
    config = Int8WeightOnlyConfig()
    if precision == "int4":  # from the lowest to the highest weight of each group
        four_bits = torch.int4  # type: ignore[attr-defined]
        config = IntxWeightOnlyConfig(four_bits, PerGroup(GROUP), mapping_type=MappingType.ASYMMETRIC)
    quantize_(net, config, filter_fn=lambda module, _: module in layers.values())


def sample_logits(network: Network, batch: Mapping[str, Tensor]) -> Tensor:
    """The logits [N, C] of a few samples, of texts those of the tokens that count, of masks those of all pixels."""
    few = max(1, COMPARED // batch["input_ids"].shape[1]) if "input_ids" in batch else len(batch["index"])
    signals = probe(network, {key: value[:few] for key, value in batch.items()})
    if signals.mask is not None and signals.logits.dim() > 2:
        return signals.logits[signals.mask > 0]
    return signals.logits.flatten(0, -2)


def agreement(full: Tensor, lower: Tensor) -> str:
    """How often the largest logit [N, C] is the same, and the mean divergence KL(full ‖ lower) in nats."""
    same = (full.argmax(-1) == lower.argmax(-1)).float().mean().item()
    divergence = kl(log_softmax(full, 1.0), log_softmax(lower, 1.0)).mean().item()
    return f"on {len(full):,} rows of logits, its most likely class is the same in {same:.1%}, KL {divergence:.2g} nats"
