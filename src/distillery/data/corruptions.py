"""Corruptions of test images in five severities, of four families: noise, blur, light and loss of detail.

They are like those of ImageNet-C (Hendrycks and Dietterich 2019, https://arxiv.org/abs/1903.12261), of which noise,
contrast, brightness, pixelation and JPEG also have the severities. Sizes of blurs are relative to the image here, so
that images of 28 and of 224 pixels suffer alike; figures are comparable only among networks that were scored by this
package. No corruption moves anything: masks and boxes stay right.
"""

import io
from collections.abc import Callable
from typing import NamedTuple
from zlib import crc32

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as v2

from distillery.core.random import hash_key

SEVERITIES = (1, 2, 3, 4, 5)


def gaussian_noise(image: Tensor, severity: int, draw: Generator) -> Tensor:
    deviation = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    return image + deviation * torch.randn(image.shape, generator=draw)


def shot_noise(image: Tensor, severity: int, draw: Generator) -> Tensor:
    """Poisson noise of a camera that counts few photons."""
    photons = (60, 25, 12, 5, 3)[severity - 1]
    return torch.poisson(image * photons, generator=draw) / photons


def impulse_noise(image: Tensor, severity: int, draw: Generator) -> Tensor:
    """Salt and pepper: some values become 0 or 1."""
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    uniform = torch.rand(image.shape, generator=draw)
    return image.masked_fill(uniform < share / 2, 0.0).masked_fill(uniform >= 1 - share / 2, 1.0)


def gaussian_blur(image: Tensor, severity: int, draw: Generator) -> Tensor:
    deviation = (0.01, 0.015, 0.02, 0.03, 0.04)[severity - 1] * min(image.shape[1:])
    reach = max(1, round(3 * deviation))
    return _filtered(image, torch.exp(-((torch.arange(-reach, reach + 1.0) / deviation) ** 2) / 2)[None], both=True)


def motion_blur(image: Tensor, severity: int, draw: Generator) -> Tensor:
    """The mean along a line of random direction."""
    length = (0.06, 0.1, 0.14, 0.18, 0.25)[severity - 1] * min(image.shape[1:])
    angle = 180 * torch.rand((), generator=draw).item()
    reach = int(length / 2) + 1
    places = torch.arange(-reach, reach + 1.0)
    line = torch.zeros(1, len(places), len(places))
    line[0, reach] = (length / 2 + 0.5 - places.abs()).clamp(0, 1)
    return _filtered(image, v2.rotate(line, angle, InterpolationMode.BILINEAR)[0])


def brightness(image: Tensor, severity: int, draw: Generator) -> Tensor:
    return image + (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]


def contrast(image: Tensor, severity: int, draw: Generator) -> Tensor:
    mean = image.mean()
    return mean + (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1] * (image - mean)


def pixelate(image: Tensor, severity: int, draw: Generator) -> Tensor:
    size = [*image.shape[1:]]
    few = [max(1, round((0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1] * side)) for side in size]
    return v2.resize(v2.resize(image, few, antialias=True), size, InterpolationMode.NEAREST)


def jpeg(image: Tensor, severity: int, draw: Generator) -> Tensor:
    quality = (25, 18, 15, 10, 7)[severity - 1]
    parts = [image] if len(image) in (1, 3) else image.split(1)  # of other numbers of channels, each is a picture
    return torch.cat([_compressed(part, quality) for part in parts])


def _compressed(image: Tensor, quality: int) -> Tensor:
    file = io.BytesIO()
    v2.to_pil_image(image).save(file, "JPEG", quality=quality)
    return v2.to_dtype(v2.pil_to_tensor(Image.open(file)), torch.float32, scale=True)


class Kind(NamedTuple):
    """A family, and what is done to an image [C,H,W] in [0,1], with a severity and a generator of random numbers."""

    family: str
    apply: Callable[[Tensor, int, Generator], Tensor]


KINDS = {
    each.__name__: Kind(family, each)
    for family, several in {
        "noise": (gaussian_noise, shot_noise, impulse_noise),
        "blur": (gaussian_blur, motion_blur),
        "light": (brightness, contrast),
        "digital": (pixelate, jpeg),
    }.items()
    for each in several
}
FAMILIES = tuple(dict.fromkeys(each.family for each in KINDS.values()))


def corrupted(images: Tensor, index: Tensor, name: str, severity: int) -> Tensor:
    """The images [B,C,H,W] in [0,1] after one corruption, on the CPU.

    What is random is a function of the corruption and of the sample's `index` [B]: it is the same for all networks,
    batches and severities.
    """
    apply, kind = KINDS[name].apply, crc32(name.encode())
    draws = (Generator().manual_seed(hash_key(kind, sample) >> 1) for sample in index.tolist())
    return torch.stack([apply(image, severity, draw).clamp(0, 1) for image, draw in zip(images, draws, strict=True)])


def _filtered(image: Tensor, kernel: Tensor, both: bool = False) -> Tensor:
    """The image [C,H,W] after a filter [h,w] of odd size, divided by its sum; `both`: also with its transpose.

    Beyond its edges the image goes on as there.
    """
    height, width = kernel.shape
    padded = F.pad(image[:, None], (width // 2, width // 2, height // 2, height // 2), mode="replicate")
    found = F.conv2d(padded, (kernel / kernel.sum())[None, None])[:, 0]
    return _filtered(found, kernel.T) if both else found
