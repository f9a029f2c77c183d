"""ResNets for 32x32 images (He et al. 2016, section 4.2).

Where the shape changes the shortcut is a 1x1 convolution with BatchNorm, as in the distillation literature.
The paper itself pads with zeros there: 2,752 parameters less at 16-32-64.
"""

from torch import Tensor, nn

from distillery.models.stages import conv_block, init_fan_out, stage_info, unit_stages


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut. The sum before its ReLU is the tap `act2:input`."""

    def __init__(self, in_chans: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_chans != width:
            self.shortcut = nn.Sequential(nn.Conv2d(in_chans, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return self.act2(y + self.shortcut(x))


class ResNet(nn.Module):
    """`stages.0`, `.1`, `.2` end at 32x32, 16x16 and 8x8, after their ReLU.

    Args:
        depth: 6n + 2 layers, for n blocks in each stage.
        stem: channels of the first convolution.
        widths: channels of the three stages.
    """

    def __init__(
        self,
        num_classes: int,
        in_chans: int = 3,
        depth: int = 20,
        stem: int = 16,
        widths: tuple[int, int, int] = (16, 32, 64),
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_block(in_chans, stem))
        blocks = (depth - 2) // 6
        self.stages = unit_stages(BasicBlock, stem, widths, 3 * [blocks], first=1)
        self.head = nn.Linear(widths[2], num_classes)
        self.feature_info = stage_info(widths, (1, 2, 4))
        init_fan_out(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))
