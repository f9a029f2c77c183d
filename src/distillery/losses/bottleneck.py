"""The projector of SemCKD and SimKD (Chen et al., AAAI 2021 and CVPR 2022)."""

from torch import nn


def bottleneck(width_in: int, middle: int, width_out: int) -> nn.Sequential:
    """Maps [B, width_in, H, W] → [B, width_out, H, W]: convolutions without biases, BatchNorm and ReLU in between."""
    return nn.Sequential(
        nn.Conv2d(width_in, middle, 1, bias=False),
        nn.BatchNorm2d(middle),
        nn.ReLU(inplace=True),
        nn.Conv2d(middle, middle, 3, padding=1, bias=False),
        nn.BatchNorm2d(middle),
        nn.ReLU(inplace=True),
        nn.Conv2d(middle, width_out, 1, bias=False),
    )
