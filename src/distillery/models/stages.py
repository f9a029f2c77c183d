"""What the small networks share: how their stages are built and described, and how their weights start."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn


def unit_stages(
    unit: Callable[[int, int, int], nn.Module], stem: int, widths: Sequence[int], units: Sequence[int], first: int
) -> nn.ModuleList:
    """Stages of `units[i]` units (in_chans, width, stride). The first unit of each stage changes width and resolution.

    Args:
        stem: channels that go into the first stage.
        first: stride of the first stage; all others have stride 2.
    """
    strides = (first, *[2] * (len(widths) - 1))
    return nn.ModuleList(
        nn.Sequential(unit(in_chans, width, stride), *(unit(width, width, 1) for _ in range(count - 1)))
        for in_chans, width, count, stride in zip((stem, *widths[:-1]), widths, units, strides, strict=True)
    )


def conv_block(in_chans: int, width: int, kernel: int = 3, stride: int = 1, **options: Any) -> list[nn.Module]:
    """Convolution that keeps the size at stride 1, without bias unless `options` say so; BatchNorm; ReLU."""
    conv = nn.Conv2d(in_chans, width, kernel, stride, padding=kernel // 2, **{"bias": False, **options})
    return [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]


def stage_info(channels: Iterable[int], reductions: Iterable[int]) -> list[dict[str, int | str]]:
    """timm's `feature_info` of a network whose stages are `stages.0`, `stages.1`, ...

    Args:
        channels: of each stage's output.
        reductions: how often each stage's output fits into the image, along one side.
    """
    return [
        {"num_chs": width, "reduction": reduction, "module": f"stages.{index}"}
        for index, (width, reduction) in enumerate(zip(channels, reductions, strict=True))
    ]


def init_fan_out(net: nn.Module) -> None:
    """Kaiming normal by fan-out for convolutions, with zero biases (He et al. 2015, section 2.2).

    Norm layers start at 1 and 0, and linear layers as PyTorch makes them.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
