"""The map that a network's head averages: the source of class maps, and what SimKD replaces."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.models.taps.network import Network, watch


def pooled_map(network: Network, batch: Mapping[str, Tensor]) -> str:
    """The path of the map [B, C, H, W] whose mean over positions goes into the network's head.

    Found by its values on `batch`; of several the last to finish, and one of more than one position if there is any.

    Raises:
        UserError: no layer gives such a map.
    """
    maps: dict[str, Tensor] = {}
    embedding: list[Tensor] = []
    head = network.head(batch)

    def note(path: str, inputs: Any, output: Tensor) -> None:
        if output.dim() == 4:
            maps.pop(path, None)
            maps[path] = output
        if path == head:
            embedding.append(inputs[0])

    watch(network, batch, note)

    def averaged(features: Tensor) -> bool:
        mean = features.mean((2, 3))
        return mean.shape == embedding[-1].shape and torch.allclose(mean, embedding[-1], rtol=1e-3, atol=1e-5)

    found = [path for path, features in maps.items() if averaged(features)]
    if not found:
        raise UserError(
            f"The {network.name} network's head does not take the mean of a map [B, C, H, W] over its positions. "
            "Name the layers, `layers: {student_layer: teacher_layer}`, or choose another loss."
        )
    return max(found, key=lambda path: (maps[path].shape[2:].numel() > 1, found.index(path)))
