"""The LightningDataModule of images."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Self

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from distillery.core.errors import UserError
from distillery.data.augmentation import SETTING, augment_options
from distillery.data.images import image_batch
from distillery.data.masks import MaskedImages, masked_batch
from distillery.data.mixing import Mix, MixedImages
from distillery.data.module import Data, Stage
from distillery.data.raw_data import Split
from distillery.data.sampler import BatchKey


@dataclass(eq=False, repr=False)
class VisionData(Data):
    """Serves `image` [B,C,H,W] in [0,1], `target` [B] and `index` [B] from the splits of `source`.

    Where training images are mixed, the `target` of their batches is soft: [B,K], float32. Where they have masks
    (`MaskedImages`), it is the class of each pixel: [B,H,W]. With `views`, `view` [B] is the number of each one's view.

    Args, besides those of `Data`:
        mean, std: per channel, for the networks' input adapters; the batches themselves are not normalised.
        augment: options of the training augmentation, see `Augmentation`; None: no augmentation.
        views: the number of augmented versions of each training image, which the epochs serve in turn: epoch e serves
            view e mod `views`, which is what epoch e mod `views` serves without this setting. None: another version in
            each epoch.
        views_seed: draws the augmentation, and the partners of mixed images; None: `seed` does.
    """

    kind = "images"

    mean: Sequence[float]
    std: Sequence[float]
    augment: Mapping[str, Any] | None = None
    views: PositiveInt | None = None
    views_seed: NonNegativeInt | None = None

    def served(self, splits: dict[str, Split]) -> dict[str, Split]:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise UserError(
                    f"data.{name} has {len(values)} value(s), but the images of '{self.raw.name}' have "
                    f"{self.channels} channel(s)."
                )
        return splits

    def inputs_of(self, stage: Stage) -> Callable[..., dict[str, Tensor]]:
        split, seed = self.splits[stage], self.seed if self.views_seed is None else self.views_seed
        made = masked_batch if isinstance(split.inputs, MaskedImages) else image_batch
        if stage != "train" or not self.augment:
            return partial(made, split.inputs, None, seed)
        options = augment_options(self.augment)
        transform = split.inputs.transform(options, self.mean, self.std)
        inputs: Callable[..., dict[str, Tensor]] = partial(made, split.inputs, transform, seed)
        if options.mixes:
            if not self.classes:
                raise UserError(
                    f"{SETTING}: mixup and cutmix mix the classes of two images, and those of '{self.name}' have none. "
                    f"Set {SETTING}.mixup=0 and {SETTING}.cutmix=0."
                )
            which = split.indices, split.labelled_indices
            inputs = MixedImages(split.inputs, transform, Mix(options), split.targets, *which, len(self.classes), seed)
        return inputs if self.views is None else partial(_view, inputs, self.views)

    def on(self, device: torch.device) -> Self:
        """The same data, for training on `device`: images in memory live on a GPU, and batches are made there.

        Not if the augmentation is of single images, nor if the images take more than a quarter of the free memory.
        """
        stores = {id(split.inputs): split.inputs.nbytes for split in self.splits.values()}
        of_each = augment_options(self.augment or {}).of_each
        if of_each or not all(stores.values()) or sum(stores.values()) > free_memory(device) / 4:
            return self
        other = copy(self)
        other.fingerprint, other.num_workers, other.resident = self.fingerprint, 0, True
        other.splits = {name: replace(split, inputs=split.inputs.on(device)) for name, split in self.splits.items()}
        return other

    @property
    def input(self) -> dict[str, Any]:
        return {"mean": list(self.mean), "std": list(self.std)}

    @property
    def varies(self) -> str | None:
        return "augment" if self.augment else None

    @property
    def distinct_views(self) -> int | None:
        return self.views if self.augment else 1

    @property
    def views_key(self) -> dict[str, str]:
        if not self.augment:
            return {}
        options = augment_options(self.augment)
        chosen = [
            f"{each.name}={value}" for each in fields(options) if (value := getattr(options, each.name)) != each.default
        ]
        key = {
            "augmentation": " ".join(chosen),
            "number of views (data.views)": str(self.views),
            "seed of the views": str(self.seed if self.views_seed is None else self.views_seed),
        }
        if options.random_erasing is not None:  # its noise has the data's mean and deviation
            key["mean and deviation"] = f"{[*self.mean]} {[*self.std]}"
        if options.mixes:
            split = self.splits["train"]
            partners = b"".join(each.numpy().tobytes() for each in (split.indices, split.labelled_indices))
            key["set of samples to mix with"] = hashlib.sha256(partners).hexdigest()
        return key

    @property
    def mixes(self) -> bool:
        return augment_options(self.augment or {}).mixes

    @property
    def channels(self) -> int:
        return self.raw.train.inputs.shape[0]


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU; 0 on other devices."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def _view(
    inputs: Callable[[Tensor, BatchKey], dict[str, Tensor]], views: int, index: Tensor, key: BatchKey
) -> dict[str, Tensor]:
    """The inputs of a batch as they are in the epoch that first serves its view, and the number of that view."""
    view = key.epoch % views
    return inputs(index, key._replace(epoch=view)) | {"view": torch.full_like(index, view)}
