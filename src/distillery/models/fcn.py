"""A small fully convolutional network, which classifies the pixels of small images."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from distillery.models.cnn import Norm, conv_stages, stage_maps
from distillery.models.stages import init_fan_out, stage_info


class SmallFCN(nn.Module):
    """The stages of `SmallCNN`, joined from the last to the first as in a feature pyramid (Lin et al. 2017).

    Each stage goes through a 1x1 convolution to `width` channels; what has been joined is enlarged bilinearly and
    added. The head is a 1x1 convolution, too. `stages.i` gives [B, widths[i], H / 2^i, W / 2^i], `head` the logits
    [B, num_classes, H, W].

    Args:
        widths: channels of each stage. The image must be at least 2^(len(widths) - 1) pixels high and wide.
        width: channels of the pyramid.
        norm: see `SmallCNN`.

    Raises:
        UserError: no width, or an unknown norm.
    """

    pretrained_cfg: ClassVar = {"classifier": "head"}  # where timm's networks say where the classifier is

    def __init__(
        self,
        num_classes: int,
        in_chans: int = 3,
        widths: Sequence[int] = (16, 32, 64),
        width: int = 32,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        self.stages = conv_stages(in_chans, widths, norm)
        init_fan_out(self.stages)
        self.laterals = nn.ModuleList(nn.Conv2d(each, width, 1) for each in widths)
        self.head = nn.Conv2d(width, num_classes, 1)
        self.feature_info = stage_info(widths, [2**i for i in range(len(widths))])

    def forward(self, x: Tensor) -> Tensor:
        maps = stage_maps(self.stages, x)
        *earlier, joined = [lateral(each) for lateral, each in zip(self.laterals, maps, strict=True)]
        for each in reversed(earlier):
            joined = each + functional.interpolate(joined, each.shape[2:], mode="bilinear")
        return self.head(functional.relu(joined))
