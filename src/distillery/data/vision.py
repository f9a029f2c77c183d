"""The LightningDataModule of every vision data set."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from distillery.data.images import BatchDataset
from distillery.data.loader import ResumableLoader
from distillery.data.raw import RawData, Split
from distillery.data.sampler import SeededBatchSampler
from distillery.data.splits import SPLIT_SEED, read_index, stratified
from distillery.errors import UserError

Stage = Literal["train", "val", "test"]


class VisionData(LightningDataModule):
    """Serves `image` [B,C,H,W] in [0,1], `target` [B] and `index` [B] from the splits of `source`.

    Args:
        source: returns the `RawData`; called once, with `root` if that is given.
        mean, std: of each channel; the networks normalise with them, the batches are not normalised.
        batch_size, eval_batch_size: samples of all processes together.
        seed: of the training subset, the order and the augmentation.
        train_size, train_fraction: the size of a stratified subset of the training split, drawn by the seed.
        train_index: instead of them, a file of the positions in the raw training set to train on, one a line,
            the same for every seed; its path is relative to the repository.
        val_size: how many (or, below 1, which share) of the training images are kept for validation, always
            the same ones; 0 for none. None: the set's own split, else a tenth.
        augment: options of the source's training augmentation; None for none.
        num_workers: processes that make batches; images held in memory need none.
        drop_last: leave out an incomplete last training batch.

    Raises:
        UserError: (at `setup` or the first use) the data cannot be read or split as asked.
    """

    def __init__(
        self,
        source: Callable[..., RawData],
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        root: str | None = None,
        train_size: int | None = None,
        train_fraction: float | None = None,
        train_index: str | None = None,
        val_size: int | float | None = None,
        augment: Mapping[str, Any] | None = None,
        num_workers: int = 0,
        drop_last: bool = False,
    ) -> None:
        super().__init__()
        self.source = source
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.root = root
        self.train_size = train_size
        self.train_fraction = train_fraction
        self.train_index = train_index
        self.val_size = val_size
        self.augment = augment
        self.num_workers = num_workers
        self.drop_last = drop_last

    @cached_property
    def raw(self) -> RawData:
        return self.source() if self.root is None else self.source(self.root)

    @cached_property
    def splits(self) -> dict[str, Split]:
        """The train, val (may be empty) and test splits as they are served."""
        train, val = self._validation()
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != train.images.shape[0]:
                raise UserError(
                    f"data.{name} has {len(values)} value(s), but the images of '{self.raw.name}' have "
                    f"{train.images.shape[0]} channel(s)."
                )
        return {"train": self._subset(train), "val": val, "test": self.raw.test}

    def _validation(self) -> tuple[Split, Split]:
        train, own = self.raw.train, self.raw.val
        if own is not None:
            if self.val_size is not None:
                raise UserError(
                    f"'{self.raw.name}' has {len(own.indices)} validation images of its own: set data.val_size=null."
                )
            return train, own
        share = 0.1 if self.val_size is None else self.val_size
        size = round(share * len(train.indices)) if 0 < share < 1 else int(share)
        if size == 0:
            return train, Split(train.images, train.targets, train.indices[:0])
        if size >= len(train.indices):
            raise UserError(f"data.val_size={share} leaves none of {len(train.indices)} images to train on.")
        val, rest = stratified(train.targets, train.indices, size, SPLIT_SEED)
        return Split(train.images, train.targets, rest), Split(train.images, train.targets, val)

    def _subset(self, train: Split) -> Split:
        available = len(train.indices)
        given = [name for name in ("train_size", "train_fraction", "train_index") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError(f"data.{given[0]} and data.{given[1]} exclude each other: set one to null.")
        if self.train_index is not None:
            return Split(train.images, train.targets, read_index(self.train_index, train.indices))
        if self.train_fraction is not None:
            if not 0 < self.train_fraction <= 1:
                raise UserError(f"data.train_fraction={self.train_fraction} is not in (0, 1].")
            size = round(self.train_fraction * available)
        else:
            size = available if self.train_size is None else self.train_size
        if size == available:
            return train
        try:
            drawn, _ = stratified(train.targets, train.indices, size, self.seed)
        except UserError as error:
            name = "train_size" if self.train_fraction is None else "train_fraction"
            raise UserError(f"data.{name}={getattr(self, name)}: {error}") from error
        return Split(train.images, train.targets, drawn)

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.raw.name

    @property
    def classes(self) -> tuple[str, ...]:
        return self.raw.classes

    @property
    def num_classes(self) -> int:
        return len(self.raw.classes)

    @property
    def channels(self) -> int:
        return self.raw.train.images.shape[0]

    @property
    def image_size(self) -> tuple[int, int]:
        return self.raw.train.images.shape[1:]

    @property
    def sizes(self) -> dict[str, int]:
        return {stage: len(split.indices) for stage, split in self.splits.items()}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what is served: images (files: names and sizes), targets and indices of each split."""
        sha = hashlib.sha256()
        stores = {id(split.images): split.images for split in self.splits.values()}  # often shared
        contents = {key: hashlib.sha256(images.content()).digest() for key, images in stores.items()}
        for stage, split in self.splits.items():
            sha.update(stage.encode() + contents[id(split.images)])
            for values in (split.targets, split.indices):
                sha.update(values.numpy().tobytes())
        return sha.hexdigest()

    def setup(self, stage: str | None = None) -> None:
        """Read and split the data now, and check the augmentation's options."""
        self.splits["train"].images.augmentation(self.augment or {})

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._loader("train")

    def val_dataloader(self) -> Any:
        """No loader where `val_size` is 0: nothing is chosen on the test split."""
        return self._loader("val") if self.sizes["val"] else []

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._loader("test")

    def _loader(self, stage: Stage) -> DataLoader[dict[str, Tensor]]:
        train = stage == "train"
        split = self.splits[stage]
        augmentation = split.images.augmentation(self.augment) if train and self.augment else None
        distributed = dist.is_available() and dist.is_initialized()
        sampler = SeededBatchSampler(
            split.indices,
            self.batch_size if train else self.eval_batch_size,
            seed=self.seed,
            shuffle=train,
            rank=dist.get_rank() if distributed else 0,
            world=dist.get_world_size() if distributed else 1,
            drop_last=train and self.drop_last,
        )
        return (ResumableLoader if train else DataLoader)(
            BatchDataset(split.images, split.targets, augmentation, self.seed),
            sampler=sampler,
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else each iteration would draw from the global one
        )
