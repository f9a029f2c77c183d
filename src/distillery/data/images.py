"""Images by position: held in memory, or in files that are decoded batch by batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import torch
from torch import Tensor
from torchvision.transforms import v2

from distillery.core.random import hash_key, uniforms
from distillery.data.augmentation import CropFlip, CropScale, augment_options
from distillery.data.decoding import decode
from distillery.data.sampler import BatchKey


class Images(Protocol):
    """N images of one shape, addressed by their position."""

    shape: tuple[int, int, int]  # C, H, W of the served images

    def __len__(self) -> int: ...

    def augmentation(self, options: Mapping[str, Any]) -> Any:
        """The training augmentation for the options of `data.augment`; raises `UserError` for an unknown option."""

    def batch(self, index: Tensor, augmentation: Any, seed: int, epoch: int) -> Tensor:
        """The images at positions `index` [B], float32 [B,C,H,W] in [0,1]; None for `augmentation`: none."""

    def content(self) -> bytes:
        """Bytes that identify the images, for the fingerprint."""


class TensorImages:
    """Images in memory: uint8 [N,C,H,W], or float32 already in [0,1]."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        channels, height, width = values.shape[1:]
        self.shape = (channels, height, width)

    def __len__(self) -> int:
        return len(self.values)

    def augmentation(self, options: Mapping[str, Any]) -> CropFlip:
        return augment_options(CropFlip, options)

    def batch(self, index: Tensor, augmentation: CropFlip | None, seed: int, epoch: int) -> Tensor:
        images = self.values[index]
        if augmentation is not None:
            images = augmentation(images, uniforms(seed, epoch, index, 0, augmentation.uniforms))
        return images if images.is_floating_point() else images.float().div_(255)

    def content(self) -> bytes:
        return self.values.numpy().tobytes()


class Pictures(Protocol):
    """N encoded pictures."""

    def __len__(self) -> int: ...

    def open(self, position: int) -> tuple[Path | IO[bytes], str]:
        """What Pillow opens, and its name in messages."""

    def content(self) -> bytes:
        """Bytes that identify the pictures, for the fingerprint."""


@dataclass(frozen=True)
class JoinedPictures:
    """The pictures of `first`, and after them those of `second`."""

    first: Pictures
    second: Pictures

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def open(self, position: int) -> tuple[Path | IO[bytes], str]:
        after = position - len(self.first)
        return self.first.open(position) if after < 0 else self.second.open(after)

    def content(self) -> bytes:
        return self.first.content() + b"\n\n" + self.second.content()


class EncodedImages:
    """Pictures that are decoded batch by batch and served in RGB, as `size`×`size` pixels.

    Args:
        background: the colour that shows through transparent pixels, see `decode`.
    """

    def __init__(self, pictures: Pictures, size: int, background: str = "white") -> None:
        self.pictures = pictures
        self.background = background
        self.shape = (3, size, size)
        to_float = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
        # Evaluation on ImageNet crops 224 of the 256 pixels of the shorter side.
        self.centre = v2.Compose([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size), *to_float])
        self.to_float = v2.Compose(to_float)

    @property
    def paths(self) -> list[Path]:
        """Where each picture is."""
        return [Path(self.pictures.open(position)[1]) for position in range(len(self.pictures))]

    def __len__(self) -> int:
        return len(self.pictures)

    def augmentation(self, options: Mapping[str, Any]) -> v2.Transform:
        choice = augment_options(CropScale, options)
        flip = [v2.RandomHorizontalFlip()] if choice.flip else []
        if choice.resized_crop is None:
            return v2.Compose([self.centre, *flip])
        crop = v2.RandomResizedCrop(self.shape[1], scale=tuple(choice.resized_crop))
        return v2.Compose([crop, *flip, self.to_float])

    def batch(self, index: Tensor, augmentation: v2.Transform | None, seed: int, epoch: int) -> Tensor:
        images = [decode(*self.pictures.open(position), self.background) for position in index.tolist()]
        if augmentation is None:
            return torch.stack([self.centre(image) for image in images])
        served = []
        with torch.random.fork_rng(devices=[]):
            for position, image in zip(index.tolist(), images, strict=True):
                # Not `torch.manual_seed`, which would reseed the accelerators as well.
                torch.default_generator.manual_seed(hash_key(seed, epoch, 0, position) >> 1)
                served.append(augmentation(image))
        return torch.stack(served)

    def content(self) -> bytes:
        return self.pictures.content()


def image_batch(images: Images, augmentation: Any, seed: int, index: Tensor, key: BatchKey) -> dict[str, Tensor]:
    """The `image` of a batch, from the positions [B] and the `BatchKey`."""
    return {"image": images.batch(index, augmentation, seed, key.epoch)}
