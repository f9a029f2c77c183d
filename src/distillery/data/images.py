"""Images by position: held in memory, or in files that are decoded batch by batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, Self

import torch
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.transforms import v2

from distillery.core.random import uniforms
from distillery.data.augmentation import Augmentation, of_samples
from distillery.data.decoding import decode
from distillery.data.sampler import BatchKey
from distillery.data.whole_batches import CropFlip, CropFlipErase, sent

# Of whole batches, or of single images; None: images are served as in evaluation.
Transform = CropFlip | CropFlipErase | Callable[[Any], Tensor] | None


class Images(Protocol):
    """N images of one shape, addressed by their position."""

    shape: tuple[int, int, int]  # C, H, W of the served images

    def __len__(self) -> int: ...

    def transform(self, options: Augmentation, mean: Sequence[float], std: Sequence[float]) -> Transform:
        """What augments single images, for `batch`."""

    def batch(self, index: Tensor, transform: Transform, seed: int, epoch: int) -> Tensor:
        """The images at positions `index` [B], float32 [B,C,H,W] in [0,1]."""

    def content(self) -> bytes:
        """Bytes that identify the images, for the fingerprint."""

    @property
    def nbytes(self) -> int:
        """How much memory the images take; 0: they are in files."""

    def on(self, device: torch.device) -> Self:
        """The same images; those in memory are held, and made into batches, on a device."""


class TensorImages:
    """Images in memory: uint8 [N,C,H,W], or float32 already in [0,1]."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self._copies = dict[torch.device, Self]()  # splits often share the images
        channels, height, width = values.shape[1:]
        self.shape = (channels, height, width)

    def __len__(self) -> int:
        return len(self.values)

    def transform(self, options: Augmentation, mean: Sequence[float], std: Sequence[float]) -> Transform:
        if not options.of_each:
            moved, erasing = CropFlip(options.crop, options.flip), options.random_erasing
            return moved if erasing is None else CropFlipErase(self.shape[1:], moved, erasing, mean, std)
        return options.transform(self.shape[1:], mean, std)

    def load(self, index: Tensor) -> Tensor:
        """The images at positions `index` [B], as they are: [B,C,H,W]."""
        return self.values[index]

    def batch(self, index: Tensor, transform: Transform, seed: int, epoch: int) -> Tensor:
        there = sent(index, self.values.device)
        images = self.values[there]
        if isinstance(transform, CropFlip):
            images = transform(images, uniforms(seed, epoch, there, 0, transform.uniforms))
        elif isinstance(transform, CropFlipErase):
            return transform(images, of_samples(transform.draw, images, seed, epoch, index, 0))
        elif transform is not None:
            return torch.stack(of_samples(transform, images, seed, epoch, index, 0))
        if images.is_floating_point():
            return images
        # By a tensor: CUDA multiplies by the reciprocal of a number, which differs in the last bit.
        return images.float().div_(torch.full((1,), 255.0, device=images.device))

    def content(self) -> bytes:
        return self.values.cpu().numpy().tobytes()

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    def on(self, device: torch.device) -> Self:
        if device not in self._copies:
            self._copies[device] = type(self)(self.values.to(device))
        return self._copies[device]


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
        squeeze: serve all of a picture, squeezed into the square; False: its centre.
    """

    def __init__(self, pictures: Pictures, size: int, background: str = "white", squeeze: bool = False) -> None:
        self.pictures = pictures
        self.background = background
        self.squeeze = squeeze
        self.shape = (3, size, size)
        self.shorter_side = round(size * 256 / 224)  # evaluation on ImageNet crops 224 of its 256 pixels
        centre = [v2.Resize(self.shorter_side), v2.CenterCrop(size)]
        self.whole = [v2.Resize((size, size))] if squeeze else centre
        self.plain = v2.Compose([*self.whole, v2.ToDtype(torch.float32, scale=True)])

    @property
    def paths(self) -> list[Path]:
        """Where each picture is."""
        return [Path(self.pictures.open(position)[1]) for position in range(len(self.pictures))]

    def __len__(self) -> int:
        return len(self.pictures)

    def transform(self, options: Augmentation, mean: Sequence[float], std: Sequence[float]) -> Transform:
        return options.transform(self.shape[1:], mean, std, self.whole, pillow=True)

    def load(self, index: Tensor) -> list[Tensor]:
        """The pictures at positions `index` [B], decoded: uint8 [3,H,W]."""
        return [decode(*self.pictures.open(position), self.background) for position in index.tolist()]

    def batch(self, index: Tensor, transform: Transform, seed: int, epoch: int) -> Tensor:
        images = self.load(index)
        if transform is None:
            made = [self.plain(image) for image in images]
        else:
            made = of_samples(transform, images, seed, epoch, index, 0)
        batch: Tensor = default_collate(made)  # not `torch.stack`: a worker then stacks into shared memory
        return batch

    def content(self) -> bytes:
        return self.pictures.content()

    @property
    def nbytes(self) -> int:
        return 0

    def on(self, device: torch.device) -> Self:
        return self


def image_batch(images: Images, transform: Transform, seed: int, index: Tensor, key: BatchKey) -> dict[str, Tensor]:
    """The `image` of a batch, from the positions [B] and the `BatchKey`."""
    return {"image": images.batch(index, transform, seed, key.epoch)}
