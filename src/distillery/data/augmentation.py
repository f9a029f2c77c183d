"""The options of `data.augment`, and the augmentation of images held in memory, a pure function of uniform numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt
from torch import Tensor

from distillery.core.errors import UserError, did_you_mean
from distillery.core.kinds import conform

T = TypeVar("T")


@dataclass(frozen=True)
class CropFlip:
    """Crop at random from the image padded with `crop` black pixels on each side; flip half of the images.

    The standard augmentation of CIFAR (He et al. 2016, §4.2: crop 4 and flip). Uses 3 uniform numbers per sample.
    """

    crop: NonNegativeInt = 0
    flip: bool = False
    uniforms = 3

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Images [B,C,H,W] of any dtype, uniform [B,3] in [0,1): down, right, flip -> [B,C,H,W]."""
        batch, channels, height, width = images.shape
        padded = F.pad(images, (self.crop,) * 4)
        offset = (uniform[:, :2] * (2 * self.crop + 1)).long()
        columns = torch.arange(width, device=images.device).expand(batch, width)
        if self.flip:
            columns = torch.where(uniform[:, 2:] < 0.5, columns.flip(1), columns)
        rows = offset[:, :1] + torch.arange(height, device=images.device)
        columns = offset[:, 1:] + columns
        source = rows[:, :, None] * (width + 2 * self.crop) + columns[:, None, :]
        source = source.view(batch, 1, -1).expand(-1, channels, -1)
        return padded.flatten(2).gather(2, source).view(images.shape)


@dataclass(frozen=True)
class CropScale:
    """The standard augmentation of ImageNet (Szegedy et al. 2015): a crop of random area, and a flip.

    `resized_crop` is the range of the cropped fraction of the area; None: the centre is cropped.
    """

    resized_crop: tuple[float, float] | None = None
    flip: bool = False


def augment_options(kind: type[T], given: Mapping[str, Any]) -> T:
    """`kind(**given)`.

    Raises:
        UserError: an unknown option, with the nearest right one, or a value of another type.
    """
    known = get_type_hints(kind, include_extras=True)
    options = {}
    for name, value in given.items():
        if name not in known:
            raise UserError(f"data.augment has no option '{name}'.{did_you_mean(name, known)}")
        options[name] = conform(f"data.augment.{name}", value, known[name])
    return kind(**options)
