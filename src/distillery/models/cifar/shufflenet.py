"""ShuffleNet V1 (Zhang et al. 2018) and V2 (Ma et al. 2018) for 32x32 images.

As in the distillation literature the stem is one 1x1 convolution at full resolution, and all weights start as
PyTorch makes them. V1 has a ReLU after its depthwise convolutions, which its paper leaves out.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from distillery.models.stages import conv_block, stage_info, unit_stages

STEM = 24
BLOCKS = (4, 8, 4)


class ShuffleUnitV1(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; stride 2 appends the pooled input, stride 1 adds."""

    def __init__(self, in_chans: int, width: int, stride: int, groups: int = 3) -> None:
        super().__init__()
        self.stride = stride
        added = width - in_chans if stride == 2 else width
        middle = added // 4
        # the stem's few channels are not divided into groups (V1 paper, section 3.3)
        self.groups = 1 if in_chans == STEM else groups
        self.conv1 = nn.Conv2d(in_chans, middle, 1, groups=self.groups, bias=False)
        self.norm1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, padding=1, groups=middle, bias=False)
        self.norm2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, added, 1, groups=groups, bias=False)
        self.norm3 = nn.BatchNorm2d(added)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(self.conv1(x)), inplace=True)
        y = functional.channel_shuffle(y, self.groups)
        y = functional.relu(self.norm2(self.conv2(y)), inplace=True)
        y = self.norm3(self.conv3(y))
        if self.stride == 2:
            return self.act(torch.cat([y, functional.avg_pool2d(x, 3, 2, padding=1)], 1))
        return self.act(y + x)


class ShuffleUnitV2(nn.Module):
    """Two branches, concatenated and shuffled. With stride 1 half of the channels pass as they are."""

    def __init__(self, in_chans: int, width: int, stride: int) -> None:
        super().__init__()
        half = width // 2
        self.left = None
        if stride == 2:
            self.left = nn.Sequential(*_depthwise(in_chans, stride), *conv_block(in_chans, half, 1))
        self.right = nn.Sequential(
            *conv_block(in_chans if stride == 2 else half, half, 1),
            *_depthwise(half, stride),
            *conv_block(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.left is None:
            kept, x = x.chunk(2, 1)
        else:
            kept = self.left(x)
        return functional.channel_shuffle(torch.cat([kept, self.right(x)], 1), 2)


class ShuffleNetV1(nn.Module):
    """The 1x model with 3 groups. `stages.0`, `.1`, `.2` end at 16x16, 8x8 and 4x4, after their ReLU."""

    def __init__(self, num_classes: int, in_chans: int = 3) -> None:
        super().__init__()
        widths = (240, 480, 960)
        self.stem = nn.Sequential(*conv_block(in_chans, STEM, 1))
        self.stages = unit_stages(ShuffleUnitV1, STEM, widths, BLOCKS, first=2)
        self.head = nn.Linear(widths[-1], num_classes)
        self.feature_info = stage_info(widths, (2, 4, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))


class ShuffleNetV2(nn.Module):
    """The 1x model. `stages.0`, `.1`, `.2` end at 16x16, 8x8 and 4x4, after ReLU; `last` widens to 1024."""

    def __init__(self, num_classes: int, in_chans: int = 3) -> None:
        super().__init__()
        widths = (116, 232, 464)
        self.stem = nn.Sequential(*conv_block(in_chans, STEM, 1))
        self.stages = unit_stages(ShuffleUnitV2, STEM, widths, BLOCKS, first=2)
        self.last = nn.Sequential(*conv_block(widths[-1], 1024, 1))
        self.head = nn.Linear(1024, num_classes)
        self.feature_info = stage_info(widths, (2, 4, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(self.last(x).mean((2, 3)))


def _depthwise(width: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False), nn.BatchNorm2d(width)]
