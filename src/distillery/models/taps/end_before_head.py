"""Forwards that end before the head of their network, and leave the logits to others.

For vocabularies of many tokens, whose logits are computed a few rows at a time: `distillery.losses.chunked`.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.losses.levels import Headed
from distillery.models.evaluation_mode import evaluating
from distillery.models.taps.head import Head, is_plain
from distillery.models.taps.network import Network

# What configs of transformers call a factor of the logits: Cohere's, Falcon-H1's, and Granite's, which divides.
FACTORS = ("logit_scale", "lm_head_multiplier", "logits_scaling")


def find_head(network: Network, batch: Mapping[str, Tensor]) -> None:
    """Let forwards of the network within `before_heads` end before its head.

    What follows the linear layer is found out by giving it random outputs on `batch`.

    Raises:
        UserError: why they cannot, as a clause of which the network is "it".
    """
    network.known_head = None
    try:
        path = network.head(batch)
    except UserError:
        raise UserError("it has no linear head") from None
    linear: Any = network.net.get_submodule(path)
    if not is_plain(linear):
        raise UserError(f"its head {path!r} is no plain linear layer, but quantised or with an adapter")
    given: list[Tensor] = []

    def replaced(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        draw = torch.Generator().manual_seed(len(given))
        given.append(20 * torch.randn(output.shape, generator=draw).to(output))
        return given[-1]

    hook = linear.register_forward_hook(replaced)
    try:
        with evaluating(network):
            whole = network(batch)
    finally:
        hook.remove()
    for head in _possible(network.net, path, linear.bias is not None):
        found = Headed(given[0], linear.weight, None, head.softcap).capped(head.scale * given[0])
        close = 2.0 * torch.finfo(found.dtype).eps ** 0.5
        if len(given) == 1 and found.shape == whole.logits.shape and torch.allclose(found, whole.logits, close, close):
            network.known_head = head
            break
    else:
        raise UserError(f"its logits are the output of {path!r} neither as it is, nor with a factor or a soft-cap")
    with evaluating(network), before_heads([network]):
        stopped = network(batch)
    if late := {**whole.layers, **whole.attention}.keys() - {**stopped.layers, **stopped.attention}.keys():
        network.known_head = None
        raise UserError(f"a loss reads its layer {min(late)!r}, which is its head or comes after")


def _possible(net: nn.Module, path: str, bias: bool) -> Iterator[Head]:
    config: Any = getattr(net, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    softcap = getattr(config, "final_logit_softcapping", None)
    yield Head(path, 1.0, softcap)
    for factor in () if bias else filter(None, (getattr(config, name, None) for name in FACTORS)):
        yield Head(path, float(factor), softcap)
        yield Head(path, 1 / factor, softcap)


@contextmanager
def before_heads(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within, forwards of the networks among the modules end before their head, if `find_head` has found it.

    Their signals then have `headed` in place of logits.
    """
    networks: list[Any] = [each for each in modules if getattr(each, "known_head", None) is not None]
    for network in networks:
        network.ends_before_head = True
    try:
        yield
    finally:
        for network in networks:
            network.ends_before_head = False
