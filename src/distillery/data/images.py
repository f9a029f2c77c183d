"""Images by position: held in memory, or in files that are decoded batch by batch."""

import random
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from rich.progress import track
from torch import Tensor
from torchvision.transforms import v2

from distillery.core.errors import UserError
from distillery.core.random import hash_key, uniforms
from distillery.data.augmentation import CropFlip, CropScale, augment_options
from distillery.data.sampler import BatchKey

CHECK_ALL = 10_000  # with more files, decoding all of them before training would take minutes
CHECK_SAMPLE = 1_000


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


def decode(path: Path) -> Image.Image:
    """The RGB image in a file; raises `UserError` with the file's name if it cannot be decoded."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"'{path}' cannot be decoded: {error}. Replace or remove the file.") from error


class FileImages:
    """RGB images in files, served as `size`×`size` pixels."""

    def __init__(self, paths: list[Path], root: Path, size: int) -> None:
        self.paths = paths
        self.root = root
        self.shape = (3, size, size)
        to_float = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
        # Evaluation on ImageNet crops 224 of the 256 pixels of the shorter side.
        self.centre = v2.Compose([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size), *to_float])
        self.to_float = v2.Compose(to_float)

    def __len__(self) -> int:
        return len(self.paths)

    def augmentation(self, options: Mapping[str, Any]) -> v2.Transform:
        choice = augment_options(CropScale, options)
        flip = [v2.RandomHorizontalFlip()] if choice.flip else []
        if choice.resized_crop is None:
            return v2.Compose([self.centre, *flip])
        crop = v2.RandomResizedCrop(self.shape[1], scale=tuple(choice.resized_crop))
        return v2.Compose([crop, *flip, self.to_float])

    def batch(self, index: Tensor, augmentation: v2.Transform | None, seed: int, epoch: int) -> Tensor:
        images = [decode(self.paths[position]) for position in index.tolist()]
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
        lines = (f"{path.relative_to(self.root).as_posix()}\t{path.stat().st_size}" for path in self.paths)
        return "\n".join(lines).encode()

    def check(self) -> None:
        """Decode the files, or a sample of more than `CHECK_ALL`; raises `UserError` for the first that fails."""
        paths = self.paths
        if len(paths) > CHECK_ALL:
            paths = random.Random(0).sample(paths, CHECK_SAMPLE)
        with ThreadPoolExecutor() as pool:
            for _ in track(pool.map(decode, paths), "Checking images", total=len(paths), transient=True):
                pass


def image_batch(images: Images, augmentation: Any, seed: int, index: Tensor, key: BatchKey) -> dict[str, Tensor]:
    """The `image` of a batch, from the positions [B] and the `BatchKey`."""
    return {"image": images.batch(index, augmentation, seed, key.epoch)}
