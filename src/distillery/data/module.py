"""What the LightningDataModules of images and of texts share: splits, subsets, order, loaders."""

import hashlib
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Required, Self, TypedDict

import torch
import torch.distributed as dist
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from distillery.core.errors import UserError
from distillery.data.loader import BatchDataset, ResumableLoader
from distillery.data.raw_data import RawData, Split
from distillery.data.sampler import BatchKey, SeededBatchSampler
from distillery.data.splits import SPLIT_SEED, read_index, stratified

Stage = Literal["train", "val", "test"]


class Common(TypedDict, total=False):
    """The settings of all data sets, with which those of images and of texts hand them on to `Data`."""

    batch_size: Required[int]
    eval_batch_size: Required[int]
    seed: Required[int]
    root: str | None
    train_size: int | None
    train_fraction: float | None
    train_index: str | None
    subset_seed: int | None
    val_size: int | float | None
    num_workers: int
    drop_last: bool


class Data(LightningDataModule):
    """Serves batches from the splits of `source`: `target` and `index` [B], and the inputs that a subclass makes.

    Args:
        source: returns the `RawData`; called once, with `root` if that is given.
        batch_size, eval_batch_size: samples of all processes together.
        seed: of the order, the augmentation and the masking.
        train_size, train_fraction: the size of a stratified subset of the training split.
        train_index: instead of them, a file with the positions in the raw training set to train on, one a line;
            its path is relative to the repository.
        subset_seed: draws the subset of `train_size` or `train_fraction`; None: `seed` does.
        val_size: how many (or, below 1, which share) of the training samples are kept for validation, always
            the same ones; 0 for none. None: the set's own split, else a tenth.
        num_workers: processes that make batches; data held in memory need none.
        drop_last: leave out an incomplete last training batch.

    Raises:
        UserError: (at `setup` or the first use) the data cannot be read or split as asked.
    """

    kind: ClassVar[Literal["images", "texts"]]
    vocab_size: int  # of texts

    def __init__(
        self,
        source: Callable[..., RawData],
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        root: str | None = None,
        train_size: int | None = None,
        train_fraction: float | None = None,
        train_index: str | None = None,
        subset_seed: int | None = None,
        val_size: int | float | None = None,
        num_workers: int = 0,
        drop_last: bool = False,
    ) -> None:
        super().__init__()
        self.source = source
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.root = root
        self.train_size = train_size
        self.train_fraction = train_fraction
        self.train_index = train_index
        self.subset_seed = seed if subset_seed is None else subset_seed
        self.val_size = val_size
        self.num_workers = num_workers
        self.drop_last = drop_last

    @cached_property
    def raw(self) -> RawData:
        return self.source() if self.root is None else self.source(self.root)

    @cached_property
    def splits(self) -> dict[str, Split]:
        """The train, val (may be empty) and test splits as they are served."""
        train, val = self._validation()
        return self.served({"train": self._subset(train), "val": val, "test": self.raw.test})

    def served(self, splits: dict[str, Split]) -> dict[str, Split]:
        """The splits, checked and brought to the form in which batches are made of them."""
        raise NotImplementedError

    def inputs_of(self, stage: Stage) -> Callable[..., dict[str, Tensor]]:
        """What makes the inputs of a batch, from its positions [B] and its `BatchKey`."""
        raise NotImplementedError

    @property
    def input(self) -> dict[str, Any]:
        """What a network's `input` is where its config leaves that open: what the batches are made for."""
        raise NotImplementedError

    @property
    def varies(self) -> str | None:
        """The setting that makes a training sample another one in each epoch, if there is one."""
        raise NotImplementedError

    def _validation(self) -> tuple[Split, Split]:
        train, own = self.raw.train, self.raw.val
        if own is not None:
            if self.val_size is not None:
                raise UserError(
                    f"'{self.raw.name}' has {len(own.indices)} validation samples of its own: set data.val_size=null."
                )
            return train, own
        share = 0.1 if self.val_size is None else self.val_size
        size = round(share * len(train.indices)) if 0 < share < 1 else int(share)
        if size == 0:
            return train, Split(train.inputs, train.targets, train.indices[:0])
        if size >= len(train.indices):
            raise UserError(f"data.val_size={share} leaves none of {len(train.indices)} samples to train on.")
        val, rest = stratified(train.targets, train.indices, size, SPLIT_SEED)
        return Split(train.inputs, train.targets, rest), Split(train.inputs, train.targets, val)

    def _subset(self, train: Split) -> Split:
        available = len(train.indices)
        given = [name for name in ("train_size", "train_fraction", "train_index") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError(f"data.{given[0]} and data.{given[1]} exclude each other: set one to null.")
        if self.train_index is not None:
            return Split(train.inputs, train.targets, read_index(self.train_index, train.indices))
        if self.train_fraction is not None:
            if not 0 < self.train_fraction <= 1:
                raise UserError(f"data.train_fraction={self.train_fraction} is not in (0, 1].")
            size = round(self.train_fraction * available)
        else:
            size = available if self.train_size is None else self.train_size
        if size == available:
            return train
        try:
            drawn, _ = stratified(train.targets, train.indices, size, self.subset_seed)
        except UserError as error:
            name = "train_size" if self.train_fraction is None else "train_fraction"
            raise UserError(f"data.{name}={getattr(self, name)}: {error}") from error
        return Split(train.inputs, train.targets, drawn)

    def narrowed(self, indices: Tensor) -> Self:
        """The same data with only some of the training samples.

        The `fingerprint` stays that of all samples, as which ones are chosen is a matter of how a run is trained.

        Args:
            indices: some of the training split's, [N].
        """
        other = copy(self)
        other.fingerprint = self.fingerprint
        other.splits = {**self.splits, "train": replace(self.splits["train"], indices=indices)}
        return other

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.raw.name

    @property
    def classes(self) -> tuple[str, ...]:
        return self.raw.classes

    @property
    def sizes(self) -> dict[str, int]:
        return {stage: len(split.indices) for stage, split in self.splits.items()}

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the user is told of the data."""
        return self.raw.remarks

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what is served: inputs (image files: names and sizes), targets and indices of each split."""
        sha = hashlib.sha256()
        stores = {id(split.inputs): split.inputs for split in self.splits.values()}  # often shared
        contents = {key: hashlib.sha256(inputs.content()).digest() for key, inputs in stores.items()}
        for stage, split in self.splits.items():
            sha.update(stage.encode() + contents[id(split.inputs)])
            for values in (split.targets, split.indices):
                sha.update(values.numpy().tobytes())
        return sha.hexdigest()

    def setup(self, stage: str | None = None) -> None:
        """Read and split the data now, and check the settings of what is made of them."""
        self.inputs_of("train")

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._loader("train")

    def val_dataloader(self) -> Any:
        """No loader where `val_size` is 0: nothing is chosen on the test split."""
        return self._loader("val") if self.sizes["val"] else []

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._loader("test")

    def word_counts(self) -> Tensor | None:
        """How often each word of the vocabulary occurs in the training texts, [V]; None: there are no texts."""
        return None

    def order(self, stage: Stage) -> dict[str, Any]:
        """What the order of a split depends on besides the seed: arguments of `SeededBatchSampler`."""
        return {}

    def batches(self, processes: int) -> int:
        """How many there are in an epoch of a job of so many processes, which need not run yet."""
        return len(self.sampler("train", processes))

    def sampler(self, stage: Stage, processes: int = 1) -> SeededBatchSampler:
        """The order of a split, shared out between the processes; before there are any, as that of the first."""
        train = stage == "train"
        distributed = dist.is_available() and dist.is_initialized()
        return SeededBatchSampler(
            self.splits[stage].indices,
            self.batch_size if train else self.eval_batch_size,
            seed=self.seed,
            shuffle=train,
            rank=dist.get_rank() if distributed else 0,
            world=dist.get_world_size() if distributed else processes,
            drop_last=train and self.drop_last,
            **self.order(stage),
        )

    def plain(self, size: int) -> tuple[list[BatchKey], BatchDataset]:
        """Batches of `size` with all training samples once, always the same ones together, on every process."""
        split = self.splits["train"]
        keys = list(SeededBatchSampler(split.indices, size, **self.order("train")))
        return keys, BatchDataset(self.inputs_of("train"), split.targets)

    def example(self, samples: int = 8) -> dict[str, Tensor]:
        """A few training samples: what shapes, layers and costs are found out on."""
        return {key: value[:samples] for key, value in next(iter(self.train_dataloader())).items()}

    def _loader(self, stage: Stage) -> DataLoader[dict[str, Tensor]]:
        return (ResumableLoader if stage == "train" else DataLoader)(
            BatchDataset(self.inputs_of(stage), self.splits[stage].targets),
            sampler=self.sampler(stage),
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else each iteration would draw from the global one
        )
