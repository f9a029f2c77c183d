"""A small convolutional network for small images."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional

from distillery.core.errors import UserError, did_you_mean
from distillery.models.stages import init_fan_out, stage_info

Norm = Literal["batch", "group", "none"]


class SmallCNN(nn.Module):
    """A 3x3 convolution, norm and ReLU per width; 2x2 max pooling between; mean over the image; linear head.

    `stages.i` gives [B, widths[i], H / 2^i, W / 2^i].

    Args:
        widths: channels of each stage. The image must be at least 2^(len(widths) - 1) pixels high and wide.
        norm: "group" and "none" have no batch statistics: the same result however a batch is divided.

    Raises:
        UserError: no width, or an unknown norm.
    """

    def __init__(
        self, num_classes: int, in_chans: int = 3, widths: Sequence[int] = (16, 32), norm: Norm = "batch"
    ) -> None:
        super().__init__()
        self.stages = conv_stages(in_chans, widths, norm)
        self.head = nn.Linear(widths[-1], num_classes)
        self.feature_info = stage_info(widths, [2**i for i in range(len(widths))])
        init_fan_out(self)

    def forward(self, x: Tensor) -> Tensor:
        *_, last = stage_maps(self.stages, x)
        return self.head(last.mean((2, 3)))


def conv_stages(in_chans: int, widths: Sequence[int], norm: Norm) -> nn.ModuleList:
    """The stages of `SmallCNN`. Raises UserError: no width, or an unknown norm."""
    if not widths or min(widths) < 1:
        raise UserError(f"widths={list(widths)}: the network needs positive widths, one per stage, such as [16, 32].")
    if norm not in get_args(Norm):
        raise UserError(f"norm={norm}: there is no such norm." + did_you_mean(norm, get_args(Norm)))
    inputs = [in_chans, *widths[:-1]]
    return nn.ModuleList(_stage(i, o, norm) for i, o in zip(inputs, widths, strict=True))


def stage_maps(stages: Iterable[nn.Module], x: Tensor) -> Iterator[Tensor]:
    """What each of the stages gives, with 2x2 max pooling between."""
    for index, stage in enumerate(stages):
        x = stage(functional.max_pool2d(x, 2) if index else x)
        yield x


def _stage(in_chans: int, width: int, norm: Norm) -> nn.Sequential:
    conv = nn.Conv2d(in_chans, width, 3, padding=1, bias=norm == "none")
    if norm == "none":
        return nn.Sequential(conv, nn.ReLU(inplace=True))
    layer = nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(math.gcd(width, 8), width)
    return nn.Sequential(conv, layer, nn.ReLU(inplace=True))
