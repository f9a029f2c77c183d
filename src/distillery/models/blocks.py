"""The blocks of a network, which run one after the other."""

from collections.abc import Iterator

from torch import nn


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The elements of the outermost `ModuleList`s and `Sequential`s."""
    for child in module.children():
        yield from child.children() if isinstance(child, nn.ModuleList | nn.Sequential) else blocks(child)
