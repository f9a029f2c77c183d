"""The LightningDataModule of images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from distillery.core.errors import UserError
from distillery.data.augmentation import SETTING, augment_options
from distillery.data.images import image_batch
from distillery.data.masks import MaskedImages, masked_batch
from distillery.data.mixing import MixedImages
from distillery.data.module import Data, Stage
from distillery.data.raw_data import Split


@dataclass(eq=False, repr=False)
class VisionData(Data):
    """Serves `image` [B,C,H,W] in [0,1], `target` [B] and `index` [B] from the splits of `source`.

    Where training images are mixed, the `target` of their batches is soft: [B,K], float32. Where they have masks
    (`MaskedImages`), it is the class of each pixel: [B,H,W].

    Args, besides those of `Data`:
        mean, std: per channel, for the networks' input adapters; the batches themselves are not normalised.
        augment: options of the training augmentation, see `Augmentation`; None: no augmentation.
    """

    kind = "images"

    mean: Sequence[float]
    std: Sequence[float]
    augment: Mapping[str, Any] | None = None

    def served(self, splits: dict[str, Split]) -> dict[str, Split]:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise UserError(
                    f"data.{name} has {len(values)} value(s), but the images of '{self.raw.name}' have "
                    f"{self.channels} channel(s)."
                )
        return splits

    def inputs_of(self, stage: Stage) -> Callable[..., dict[str, Tensor]]:
        split = self.splits[stage]
        made = masked_batch if isinstance(split.inputs, MaskedImages) else image_batch
        if stage != "train" or not self.augment:
            return partial(made, split.inputs, None, self.seed)
        options = augment_options(self.augment)
        transform = split.inputs.transform(options, self.mean, self.std)
        if not options.mixes:
            return partial(made, split.inputs, transform, self.seed)
        if not self.classes:
            raise UserError(
                f"{SETTING}: mixup and cutmix mix the classes of two images, and those of '{self.name}' have none. Set "
                f"{SETTING}.mixup=0 and {SETTING}.cutmix=0."
            )
        which = split.indices, split.labelled_indices
        return MixedImages(split.inputs, transform, options.mix(), split.targets, *which, len(self.classes), self.seed)

    @property
    def input(self) -> dict[str, Any]:
        return {"mean": list(self.mean), "std": list(self.std)}

    @property
    def varies(self) -> str | None:
        return "augment" if self.augment else None

    @property
    def mixes(self) -> bool:
        return augment_options(self.augment or {}).mixes

    @property
    def channels(self) -> int:
        return self.raw.train.inputs.shape[0]
