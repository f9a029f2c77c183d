"""Wide ResNets for 32x32 images (Zagoruyko & Komodakis 2016), without dropout."""

from torch import Tensor, nn

from distillery.models.stages import init_fan_out, stage_info, unit_stages


class PreactBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3x3 convolutions; a 1x1 shortcut starts after the first ReLU."""

    def __init__(self, in_chans: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_chans)
        self.act1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_chans, width, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(in_chans, width, 1, stride, bias=False) if in_chans != width else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        y = self.act2(self.norm2(self.conv1(y)))
        return shortcut + self.conv2(y)


class WideResNet(nn.Module):
    """`stages.0`, `.1`, `.2` end at 32x32, 16x16 and 8x8, as sums before any BatchNorm and ReLU.

    Attention transfer and the literature after it take those sums. The same maps after BatchNorm and ReLU are
    `stages.1.0.act1`, `stages.2.0.act1` and `act`.

    Args:
        depth: 6n + 4 layers, for n blocks in each stage.
        widen: factor on the 16, 32 and 64 channels of the stages.
    """

    def __init__(self, num_classes: int, in_chans: int = 3, depth: int = 16, widen: int = 2) -> None:
        super().__init__()
        widths = [16 * widen, 32 * widen, 64 * widen]
        blocks = (depth - 4) // 6
        self.stem = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        self.stages = unit_stages(PreactBlock, 16, widths, 3 * [blocks], first=1)
        self.norm = nn.BatchNorm2d(widths[2])
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(widths[2], num_classes)
        self.feature_info = stage_info(widths, (1, 2, 4))
        init_fan_out(self)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(self.act(self.norm(x)).mean((2, 3)))
