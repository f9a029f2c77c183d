"""Factors of the learning rate: layer-wise decay of the student's, and own rates for its head and for projectors."""

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from distillery.core.errors import UserError
from distillery.models.taps.layer_pairs import all_stages, blocks
from distillery.models.taps.network import Network
from distillery.training.objective import Objective


def lr_scales(
    student: Network,
    objective: Objective,
    batch: Mapping[str, Tensor],
    layer_decay: float | None = None,
    head: float = 1.0,
    projectors: float = 1.0,
) -> dict[str, float]:
    """The factor of each parameter's learning rate, by its name in the Distiller: `lr_scales` of an `Optim`.

    Args:
        batch: a few samples, on which the student's layers are found.
        layer_decay: d; the layer k from the end has the factor d^k, as in BEiT (https://arxiv.org/abs/2106.08254); the
            head is the last layer. None: all layers learn equally fast. See `layer_numbers`.
        head: an additional factor of the student's head, and of a second one that learns from the teacher.
        projectors: the factor of the trained parts of the losses.

    Raises:
        UserError: the order of the layers is not known, or the head shares its weights with another layer.
    """
    net = student.net
    scales = dict.fromkeys((name for name, _ in net.named_parameters()), 1.0)
    if layer_decay is not None:
        numbers = layer_numbers(student, batch)
        last = max(numbers.values())
        scales = {name: layer_decay ** (last - number) for name, number in numbers.items()}
    if head != 1:
        for path in filter(None, (student.head(batch), student.second_head)):
            for name, _ in net.get_submodule(path).named_parameters(prefix=path):
                if name not in scales:
                    raise UserError(
                        f"optim.lr_scale.head={head:g}: the student's head ({path}) shares its weights with another "
                        "layer, which would learn at that rate, too. Leave it at 1."
                    )
                scales[name] *= head
    trained = {f"objective.{name}": projectors for name, _ in objective.named_parameters()}
    return {f"student.net.{name}": scale for name, scale in scales.items()} | trained


def layer_numbers(student: Network, batch: Mapping[str, Tensor]) -> dict[str, int]:
    """The number of the layer in which each parameter of the student is, from the input on, by the parameter's name.

    A network of timm says so itself (`group_matcher`). In others, the layers are those that `layers: auto` compares:
    the blocks of a transformer, or what lies between two resolutions. What comes before the first block (embeddings) is
    a layer, and so is what follows the last one, with the head.

    Raises:
        UserError: no order of layers is known.
    """
    from timm.models import group_parameters  # half a second, which other runs need not wait

    net: Any = student.net
    known = hasattr(net, "group_matcher")
    matcher = net.group_matcher(coarse=False) if known else _in_order(student, batch).__getitem__
    numbers: dict[str, int] = group_parameters(net, matcher, reverse=True)
    return numbers


def _in_order(student: Network, batch: Mapping[str, Tensor]) -> dict[str, int]:
    """As many of the layers as end before each parameter, by its name; parameters are in the order of registration."""
    layers = student.stages(batch)
    names = [name for name, _ in student.net.named_parameters()]
    paths = all_stages(layers)
    inside = [[place for place, name in enumerate(names) if name.startswith(f"{path}.")] for path in paths]
    ends = [places[-1] for places in inside if places]
    if not paths or len(ends) < len(paths) or ends != sorted(ends):
        raise UserError(
            "optim.layer_decay: in which order this student's layers come is not known: it has no group_matcher as "
            "timm's networks have, and neither numbered blocks of tokens nor feature maps of several resolutions with "
            "weights of their own. Set optim.layer_decay=null."
        )
    if blocks(layers) and inside[0][0] > 0:
        ends = [inside[0][0] - 1, *ends]
    return {name: bisect_left(ends, place) for place, name in enumerate(names)}
