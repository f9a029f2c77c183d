"""Where a data set's images come from."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from distillery.core.random import uniforms
from distillery.data.augment import CropFlip, augment_options
from distillery.data.sampler import BatchKey


class Images(Protocol):
    """N images of one shape, addressed by their position."""

    shape: tuple[int, int, int]  # C, H, W of what is served

    def __len__(self) -> int: ...

    def augmentation(self, options: Mapping[str, Any]) -> Any:
        """The training augmentation that `data.augment` asks for; `UserError` where there is none such."""

    def batch(self, index: Tensor, augmentation: Any, seed: int, epoch: int) -> Tensor:
        """float32 [B,C,H,W] in [0,1] of index [B]; not augmented where `augmentation` is None."""

    def content(self) -> bytes:
        """What identifies the images, for the fingerprint."""


class TensorImages:
    """Images held in memory: uint8 [N,C,H,W], or float32 already in [0,1]."""

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


def image_batch(images: Images, augmentation: Any, seed: int, index: Tensor, key: BatchKey) -> dict[str, Tensor]:
    """The images of a batch: positions [B] and the key that names them."""
    return {"image": images.batch(index, augmentation, seed, key.epoch)}
