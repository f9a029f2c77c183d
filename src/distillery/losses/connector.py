"""The connectors of activation boundaries and of the feature overhaul, and the weights of their layers."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from distillery.losses.alignment import align, align_maps, as_map, channels
from distillery.losses.projectors import aligned, make_projector, run
from distillery.losses.term import Pair


class Connectors(nn.Module):
    """A projector and a BatchNorm for each pair of layers. They map the student's features before the activation.

    Args:
        kind: of the projectors; None or 'none': neither projector nor BatchNorm.
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
            yield align(run(norm, as_map(run(project, student))), as_map(teacher))


def halved_each_layer_down(rows: Sequence[Tensor]) -> Tensor:
    """The weighted sum of the layers' values: the last has weight 1, the one before it 1/2, then 1/4, and so on."""
    return torch.stack([row / 2**depth for depth, row in enumerate(reversed(rows))]).sum(0)
