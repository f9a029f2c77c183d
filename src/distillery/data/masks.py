"""Images with a class for each pixel: both are augmented alike."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from distillery.core.errors import UserError
from distillery.core.random import uniforms
from distillery.data.augmentation import LEFT_OUT, SETTING, Augmentation, of_samples
from distillery.data.images import EncodedImages, TensorImages, Transform
from distillery.data.picture_files import PictureFiles
from distillery.data.sampler import BatchKey
from distillery.data.tokens import IGNORED
from distillery.data.whole_batches import CropFlip, sent

# Torchvision's cannot be had for masks, or would leave them as they are.
WITHOUT_MASKS = ("rand_augment", "trivial_augment", "random_erasing", "mixup", "cutmix")


class Masks(Protocol):
    """A mask for each of the first images: uint8 [H,W], the class of each pixel or `LEFT_OUT`."""

    def __len__(self) -> int: ...

    def load(self, position: int) -> Tensor:
        """The mask at a position."""

    def content(self) -> bytes:
        """Bytes that identify the masks, for the fingerprint."""

    def renumbered(self, place: Tensor) -> Self:
        """The same masks; `place` has the new number of each class: uint8 [256]."""


@dataclass(frozen=True)
class TensorMasks:
    """Masks in memory: uint8 [N,H,W]."""

    values: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def load(self, position: int) -> Tensor:
        return self.values[position]

    def content(self) -> bytes:
        return self.values.numpy().tobytes()

    def renumbered(self, place: Tensor) -> Self:
        return replace(self, values=place[self.values.long()])


@dataclass(frozen=True)
class MaskFiles:
    """Masks in picture files of one channel, see `read_mask`.

    Attributes:
        classes: what each value of a file stands for: uint8 [256].
    """

    files: PictureFiles
    classes: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.files)

    def load(self, position: int) -> Tensor:
        return torch.from_numpy(self.classes[read_mask(self.files.path(position))])

    def content(self) -> bytes:
        return self.files.content() + self.classes.tobytes()

    def renumbered(self, place: Tensor) -> Self:
        return replace(self, classes=place.numpy()[self.classes])


@dataclass(frozen=True)
class MaskedImages:
    """Images and their masks. The images after the last mask have none: they are unlabelled."""

    images: TensorImages | EncodedImages
    masks: Masks

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, H, W of the served images."""
        return self.images.shape

    def content(self) -> bytes:
        """Bytes that identify both, for the fingerprint."""
        return self.images.content() + b"\n\n" + self.masks.content()

    @property
    def nbytes(self) -> int:
        """How much memory the images take; 0: they are in files."""
        return self.images.nbytes

    def on(self, device: torch.device) -> Self:
        """The same images; those in memory are held, and made into batches, on a device."""
        return replace(self, images=self.images.on(device))

    def renumbered(self, place: Tensor) -> Self:
        """The same images; `place` has the new number of each class, and one more at its end."""
        table = torch.full((256,), LEFT_OUT, dtype=torch.uint8)
        table[: len(place) - 1] = place[:-1].to(torch.uint8)
        return replace(self, masks=self.masks.renumbered(table))

    def transform(self, options: Augmentation, mean: Sequence[float], std: Sequence[float]) -> Transform:
        """What augments an image together with its mask.

        Raises:
            UserError: an option that moves or replaces pixels of images alone.
        """
        if given := [name for name in WITHOUT_MASKS if getattr(options, name)]:
            raise UserError(
                f"{SETTING}.{given[0]}: it changes images but not their masks. Leave it out; resized_crop, crop and "
                "flip move both alike, and color_jitter keeps every pixel in its place."
            )
        return self.images.transform(options, mean, std)

    def batch(self, index: Tensor, transform: Transform, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Images at positions `index` [B], float32 [B,C,H,W] in [0,1], and the classes of their pixels, int64 [B,H,W].

        Pixels that count nowhere are `IGNORED`. Masks are resized to the nearest pixel.
        """
        if isinstance(self.images, TensorImages) and (transform is None or isinstance(transform, CropFlip)):
            images = self.images.batch(index, transform, seed, epoch)
            masks, index = (sent(each, images.device) for each in (torch.stack([*self._masks(index)]), index))
            if transform is not None:
                masks = transform(masks[:, None], uniforms(seed, epoch, index, 0, transform.uniforms), LEFT_OUT)[:, 0]
        else:
            loaded = self.images.load(index)
            sizes = [image.shape[1:] for image in loaded]
            pairs = zip(loaded, map(tv_tensors.Mask, self._masks(index, sizes)), strict=True)
            if transform is None:
                assert isinstance(self.images, EncodedImages)
                made = [self.images.plain(*pair) for pair in pairs]
            else:
                made = of_samples(lambda pair: transform(*pair), pairs, seed, epoch, index, 0)
            images, masks = (torch.stack([*each]) for each in zip(*made, strict=True))
        target = masks.as_subclass(Tensor).long()
        return images, target.masked_fill(target == LEFT_OUT, IGNORED)

    def _masks(self, index: Tensor, sizes: Sequence[Any] = ()) -> Iterator[Tensor]:
        """Those of images without one are all of class 0, in the `sizes` [H,W] of the images."""
        for number, position in enumerate(index.tolist()):
            there = position < len(self.masks)
            yield self.masks.load(position) if there else torch.zeros(tuple(sizes[number]), dtype=torch.uint8)


def masked_batch(
    images: MaskedImages, transform: Transform, seed: int, index: Tensor, key: BatchKey
) -> dict[str, Tensor]:
    """The `image` and the `target` of a batch, from the positions [B] and the `BatchKey`."""
    image, target = images.batch(index, transform, seed, key.epoch)
    return {"image": image, "target": target}


def read_mask(path: Path) -> NDArray[np.uint8]:
    """The values of a mask file, [H,W]: of a palette picture the numbers of the colours, of black and white 0 and 1.

    Raises:
        UserError: it cannot be read, or is a picture of several channels or of more than 8 bits.
    """
    try:
        with Image.open(path) as mask:
            mode, values = mask.mode, np.asarray(mask)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"The mask '{path}' cannot be read: {error}. Replace it.") from error
    if mode not in ("L", "P", "1"):
        raise UserError(
            f"The mask '{path}' is a picture of mode {mode}. Save masks with one channel of 8 bits, whose values are "
            "the numbers of the classes."
        )
    return values.astype(np.uint8)
