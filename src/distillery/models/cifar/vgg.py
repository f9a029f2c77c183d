"""VGG for 32x32 images (Simonyan & Zisserman 2015), with BatchNorm and one linear layer in place of three.

As in the distillation literature there is no pooling between the last two stages, so both are 4x4.
"""

from torch import Tensor, nn
from torch.nn import functional

from distillery.models.stages import conv_block, init_fan_out, stage_info

WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """`stages.0` to `.4` end at 32x32, 16x16, 8x8, 4x4 and 4x4, after their ReLU and before pooling.

    Args:
        convs: convolutions in each of the five stages: 1 for VGG-8, 2 for VGG-13.
    """

    def __init__(self, num_classes: int, in_chans: int = 3, convs: int = 1) -> None:
        super().__init__()
        inputs = (in_chans, *WIDTHS[:-1])
        self.stages = nn.ModuleList(_stage(i, o, convs) for i, o in zip(inputs, WIDTHS, strict=True))
        self.head = nn.Linear(WIDTHS[-1], num_classes)
        self.feature_info = stage_info(WIDTHS, (1, 2, 4, 8, 8))
        init_fan_out(self)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        for index, stage in enumerate(self.stages):
            pooled = 0 < index < len(self.stages) - 1
            x = stage(functional.max_pool2d(x, 2) if pooled else x)
        return self.head(x.mean((2, 3)))


def _stage(in_chans: int, width: int, convs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(convs):
        layers += conv_block(in_chans, width, bias=True)
        in_chans = width
    return nn.Sequential(*layers)
