"""Where a data set's images come from, and the batches made of them."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from distillery.data.augment import CropFlip, augment_options
from distillery.data.random import uniforms
from distillery.data.sampler import BatchKey
from distillery.errors import UserError


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


class BatchDataset(Dataset[dict[str, Tensor]]):
    """`dataset[key]` is the batch that a `BatchKey` names: `image`, `target` and `index`."""

    def __init__(self, images: Images, targets: Tensor, augmentation: Any = None, seed: int = 0) -> None:
        self.images = images
        self.targets = targets
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, key: BatchKey) -> dict[str, Tensor]:
        if not isinstance(key, BatchKey):
            raise UserError(
                "Something replaced the seeded sampler of the data, as trainer.overfit_batches does. "
                "To overfit a few images, set data.train_size to their number instead."
            )
        index = torch.tensor(key.positions)
        return {
            "image": self.images.batch(index, self.augmentation, self.seed, key.epoch),
            "target": self.targets[index],
            "index": index,
        }
