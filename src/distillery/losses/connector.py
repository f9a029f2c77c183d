"""What activation boundaries and the feature overhaul share: connectors, and the weights of the layers."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from distillery.losses.alignment import align, align_maps, as_map, channels
from distillery.losses.projectors import aligned, make_projector
from distillery.losses.term import Pair


class Connectors(nn.Module):
    """One for each pair of layers: a projector and a BatchNorm, which give the student's features before activation.

    Args:
        kind: of the projector; None or 'none': neither projector nor BatchNorm.
        pairs: the layers and their shapes.

    Raises:
        UserError: the features have no positions, or this kind cannot join them.
    """

    def __init__(self, kind: str | None, pairs: Sequence[Pair]) -> None:
        super().__init__()
        for pair in pairs:
            aligned(pair, align_maps)
        self.projectors = nn.ModuleList(make_projector(kind, pair) for pair in pairs)
        plain = kind in (None, "none")
        self.norms = nn.ModuleList(nn.Identity() if plain else nn.BatchNorm2d(channels(pair.teacher)) for pair in pairs)

    def forward(self, features: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        for project, norm, (student, teacher) in zip(self.projectors, self.norms, features, strict=True):
            yield align(norm(as_map(project(student))), as_map(teacher))


def halved_each_layer_down(rows: Sequence[Tensor]) -> Tensor:
    """The sum of the layers' values, of which the last counts whole, the one before it half, and so on."""
    return torch.stack([row / 2**depth for depth, row in enumerate(reversed(rows))]).sum(0)
