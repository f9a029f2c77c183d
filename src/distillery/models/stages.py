"""What the small networks share: how they start, and how they describe their stages."""

from collections.abc import Iterable

from torch import nn


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
