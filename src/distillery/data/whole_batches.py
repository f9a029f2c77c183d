"""Augmentation of images in memory: the pixels of a whole batch are moved and erased at once, on any device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from distillery.data.augmentation import RandomErasing, normalised

Box = tuple[int, int, int, int]  # left, top, right, bottom, as in Pillow
NOWHERE = (0, 0, 0, 0)


@dataclass(frozen=True)
class CropFlip:
    """`Augmentation.crop` and `flip` of a whole batch, a pure function of uniform numbers: fast in memory.

    Uses 3 uniform numbers per sample.
    """

    crop: int = 0
    flip: bool = False
    uniforms = 3

    def __call__(self, images: Tensor, uniform: Tensor, padding: int = 0) -> Tensor:
        """Images [B,C,H,W] of any dtype, uniform [B,3] in [0,1): down, right, flip -> [B,C,H,W]."""
        batch, channels, height, width = images.shape
        padded = F.pad(images, (self.crop,) * 4, value=padding)
        offset = (uniform[:, :2] * (2 * self.crop + 1)).long()
        columns = torch.arange(width, device=images.device).expand(batch, width)
        if self.flip:
            columns = torch.where(uniform[:, 2:] < 0.5, columns.flip(1), columns)
        rows = offset[:, :1] + torch.arange(height, device=images.device)
        columns = offset[:, 1:] + columns
        source = rows[:, :, None] * (width + 2 * self.crop) + columns[:, None, :]
        source = source.view(batch, 1, -1).expand(-1, channels, -1)
        return padded.flatten(2).gather(2, source).view(images.shape)


class Drawn(NamedTuple):
    """What is done to one image: the uniform numbers of `CropFlip`, and the box that is erased, with its noise."""

    uniform: list[float]
    box: Box = NOWHERE
    noise: Tensor | None = None  # [C, height, width] of the box; None: the box has one value


@dataclass
class CropFlipErase:
    """`Augmentation.crop`, `flip` and `random_erasing` of a whole batch.

    `draw` draws for one image, in their order, the numbers that torchvision's transforms of single images draw.

    Args:
        size: height and width of the images.
    """

    size: Sequence[int]
    crop_flip: CropFlip
    erasing: RandomErasing
    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        self._crop = v2.RandomCrop(self.size, padding=self.crop_flip.crop)
        self._erase = v2.RandomErasing(**vars(self.erasing))

    def __call__(self, images: Tensor, drawn: Sequence[Drawn]) -> Tensor:
        """Images [B,C,H,W] of any dtype, and what is drawn for each -> float32 [B,C,H,W] in [0,1]."""
        uniform = sent(torch.tensor([each.uniform for each in drawn]), images.device)
        images = v2.functional.to_dtype(self.crop_flip(images, uniform), torch.float32, scale=True)
        erased = inside([each.box for each in drawn], images)
        if self.erasing.value != "random":
            return images.masked_fill(erased, self.erasing.value)
        noise = torch.zeros(images.shape)
        for row, (_, (left, top, right, bottom), values) in zip(noise, drawn, strict=True):
            if values is not None:
                row[:, top:bottom, left:right] = values
        noise = sent(noise, images.device)
        return v2.Compose(normalised(lambda images: torch.where(erased, noise, images), self.mean, self.std))(images)

    def draw(self, image: Tensor) -> Drawn:
        """For an image [C,H,W], from torch's generator."""
        uniform = [0.5, 0.5, 0.5]
        if pad := self.crop_flip.crop:
            crop = self._crop.make_params([image])
            uniform[:2] = [(crop[side] + 0.5) / (2 * pad + 1) for side in ("top", "left")]
        if self.crop_flip.flip:
            uniform[2] = torch.rand(1).item()
        if torch.rand(1) >= self.erasing.p:
            return Drawn(uniform)
        box = self._erase.make_params([image])
        if box["v"] is None:  # none was found that fits into the image
            return Drawn(uniform)
        corners = box["j"], box["i"], box["j"] + box["w"], box["i"] + box["h"]
        return Drawn(uniform, corners, box["v"] if self.erasing.value == "random" else None)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device. From memory that is not pinned, the host would wait for a GPU's earlier work."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def inside(boxes: Sequence[Box], images: Tensor) -> Tensor:
    """Which pixels of the images [B,C,H,W] are in the box of each: bool [B,1,H,W]."""
    left, top, right, bottom = sent(torch.tensor(boxes), images.device).T[..., None]
    rows, columns = (torch.arange(size, device=images.device) for size in images.shape[2:])
    within = (top <= rows) & (rows < bottom), (left <= columns) & (columns < right)
    return (within[0][:, :, None] & within[1][:, None, :])[:, None]
