"""MobileNetV2 (Sandler et al. 2018) at half width for 32x32 images.

As in the distillation literature the second group of blocks keeps its resolution, ReLU replaces ReLU6, and
the first block has an expanding convolution although its factor is 1. The final width stays 1280.
"""

from torch import Tensor, nn

from distillery.models.stages import conv_block, init_fan_out, stage_info

STEM = 16
LAST = 1280
# A row is a stage (one resolution); its groups are (expansion, channels at half width, blocks, first stride).
STAGES = (
    ((1, 8, 1, 1), (6, 12, 2, 1)),
    ((6, 16, 3, 2),),
    ((6, 32, 4, 2), (6, 48, 3, 1)),
    ((6, 80, 3, 2), (6, 160, 1, 1)),
)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1 projection; a shortcut where the shape stays."""

    def __init__(self, in_chans: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = in_chans * expansion
        self.shortcut = stride == 1 and in_chans == width
        self.conv = nn.Sequential(
            *conv_block(in_chans, wide, 1),
            *conv_block(wide, wide, 3, stride, groups=wide),
            nn.Conv2d(wide, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return x + y if self.shortcut else y


class MobileNetV2(nn.Module):
    """`stages.0` to `.3` end at 16x16, 8x8, 4x4 and 2x2, linear (without ReLU); `last` widens to 1280."""

    def __init__(self, num_classes: int, in_chans: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_block(in_chans, STEM, 3, stride=2))
        width = STEM
        stages = []
        for groups in STAGES:
            blocks = []
            for expansion, channels, count, first in groups:
                for index in range(count):
                    blocks.append(InvertedResidual(width, channels, 1 if index else first, expansion))
                    width = channels
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.last = nn.Sequential(*conv_block(width, LAST, 1))
        self.head = nn.Linear(LAST, num_classes)
        self.feature_info = stage_info((groups[-1][1] for groups in STAGES), (2, 4, 8, 16))
        init_fan_out(self)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(self.last(x).mean((2, 3)))
