"""What the LightningDataModules of images and of texts have in common: splits, subsets, order, loaders."""

import hashlib
from collections.abc import Callable
from copy import copy
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import torch
import torch.distributed as dist
from lightning.pytorch import LightningDataModule
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.utils.data import DataLoader

from distillery.core.errors import UserError
from distillery.data.loader import BatchDataset, ResumableLoader
from distillery.data.raw_data import RawData, Split, Texts
from distillery.data.sampler import BatchKey, SeededBatchSampler
from distillery.data.splits import read_index

Stage = Literal["train", "val", "test"]


@dataclass(eq=False, repr=False)
class Data(LightningDataModule):
    """Serves batches from the splits of `source`: `target` and `index` [B], and the inputs of a subclass.

    Args:
        source: returns the `RawData`; called once, with `root` if that is not None.
        batch_size, eval_batch_size: number of samples of all processes together.
        seed: of the order, the augmentation and the masking.
        train_size, train_fraction: the size of a stratified subset of the training split.
        train_index: instead of them, a file with the positions in the raw training set to train on, one per
            line.
        subset_seed: draws the subset of `train_size` or `train_fraction`; None: `seed` does.
        val_size: the number (below 1: the fraction) of training samples held out for validation, always the same
            ones; 0: none. None: the data set's own validation split, or else a tenth.
        num_workers: processes that make batches; data in memory need none.
        drop_last: leave out an incomplete last training batch.

    Raises:
        UserError: the data cannot be read or split as asked (at `setup` or at first use).
    """

    kind: ClassVar[Literal["images", "texts"]]

    source: Callable[..., RawData]
    _: KW_ONLY
    batch_size: PositiveInt
    eval_batch_size: PositiveInt
    seed: NonNegativeInt
    root: str | None = None
    train_size: PositiveInt | None = None
    train_fraction: float | None = None
    train_index: str | None = None
    subset_seed: NonNegativeInt | None = None
    val_size: NonNegativeInt | NonNegativeFloat | None = None
    num_workers: NonNegativeInt = 0
    drop_last: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    @cached_property
    def raw(self) -> RawData:
        return self.source() if self.root is None else self.source(self.root)

    @cached_property
    def splits(self) -> dict[str, Split]:
        """The train, val (possibly empty) and test splits, as they are served."""
        train, val = self._validation()
        return self.served({"train": self._subset(train), "val": val, "test": self.raw.test})

    def served(self, splits: dict[str, Split]) -> dict[str, Split]:
        """The splits, checked and prepared for making batches."""
        raise NotImplementedError

    def inputs_of(self, stage: Stage) -> Callable[..., dict[str, Tensor]]:
        """A function that makes the inputs of a batch from its positions [B] and its `BatchKey`."""
        raise NotImplementedError

    @property
    def input(self) -> dict[str, Any]:
        """Defaults for a network's `input` config: what the batches are made for."""
        raise NotImplementedError

    @property
    def varies(self) -> str | None:
        """The setting that changes a training sample from epoch to epoch, if there is one."""
        raise NotImplementedError

    def _validation(self) -> tuple[Split, Split]:
        train, own = self.raw.train, self.raw.val
        if own is not None:
            if self.val_size is not None:
                raise UserError(
                    f"'{self.raw.name}' has its own {len(own.indices)} validation samples: set data.val_size=null."
                )
            return train, own
        share = 0.1 if self.val_size is None else self.val_size
        size = round(share * len(train.indices)) if 0 < share < 1 else int(share)
        if size == 0:
            return train, replace(train, indices=train.indices[:0])
        if size >= len(train.indices):
            raise UserError(f"data.val_size={share} leaves none of {len(train.indices)} samples to train on.")
        val, rest = train.divided(size)
        return rest, val

    def _subset(self, train: Split) -> Split:
        available = len(train.indices)
        given = [name for name in ("train_size", "train_fraction", "train_index") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError(f"data.{given[0]} and data.{given[1]} exclude each other: set one to null.")
        if self.train_index is not None:
            return replace(train, indices=read_index(self.train_index, train.indices))
        if self.train_fraction is not None:
            if not 0 < self.train_fraction <= 1:
                raise UserError(f"data.train_fraction={self.train_fraction} is not in (0, 1].")
            size = round(self.train_fraction * available)
        else:
            size = available if self.train_size is None else self.train_size
        if size == available:
            return train
        try:
            return train.divided(size, self.seed if self.subset_seed is None else self.subset_seed)[0]
        except UserError as error:
            name = "train_size" if self.train_fraction is None else "train_fraction"
            raise UserError(f"data.{name}={getattr(self, name)}: {error}") from error

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
        """Remarks on the data, for the user."""
        train, inputs = self.splits["train"], self.raw.train.inputs
        if isinstance(inputs, Texts) and inputs.labels is not None:  # the words have classes, not the texts
            return self.raw.remarks
        present = set(train.targets[train.indices].tolist())
        absent = [name for label, name in enumerate(self.classes) if label not in present]
        return self.raw.remarks + ((f"train: no sample of {', '.join(absent)}",) if absent else ())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of each split: inputs (for image files, names and sizes), targets and indices."""
        sha = hashlib.sha256()
        stores = {id(split.inputs): split.inputs for split in self.splits.values()}  # often shared
        contents = {key: hashlib.sha256(inputs.content()).digest() for key, inputs in stores.items()}
        for stage, split in self.splits.items():
            sha.update(stage.encode() + contents[id(split.inputs)])
            for values in (split.targets, split.indices):
                sha.update(values.numpy().tobytes())
        return sha.hexdigest()

    def setup(self, stage: str | None = None) -> None:
        """Read and split the data, and check the settings."""
        self.inputs_of("train")

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._loader("train")

    def val_dataloader(self) -> Any:
        """No loader if there are no validation samples: nothing is selected on the test split."""
        return self._loader("val") if self.sizes["val"] else []

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._loader("test")

    @property
    def vocab_size(self) -> int:
        """The number of tokens; of texts only."""
        raise NotImplementedError

    @property
    def pad_token_id(self) -> int:
        """The token that texts are padded with; of texts only."""
        raise NotImplementedError

    def word_counts(self) -> Tensor | None:
        """How often each token of the vocabulary occurs in the training texts, [V]; None for images."""
        return None

    def order(self, stage: Stage) -> dict[str, Any]:
        """Arguments of `SeededBatchSampler` on which the order of a split depends besides the seed."""
        return {}

    def batches(self, processes: int) -> int:
        """The number of training batches per epoch in a job of that many processes, which need not be running yet."""
        return len(self.sampler("train", processes))

    def sampler(self, stage: Stage, processes: int = 1) -> SeededBatchSampler:
        """The order of a split in this process; before the processes are started, that of the first of `processes`."""
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
        """Batches of `size` that hold every training sample once, the same batches on every process."""
        split = self.splits["train"]
        keys = list(SeededBatchSampler(split.indices, size, **self.order("train")))
        return keys, BatchDataset(self.inputs_of("train"), split.targets)

    def example(self, samples: int = 8) -> dict[str, Tensor]:
        """A few training samples, on which shapes, layers and costs are measured."""
        return {key: value[:samples] for key, value in next(iter(self.train_dataloader())).items()}

    def _loader(self, stage: Stage) -> DataLoader[dict[str, Tensor]]:
        return (ResumableLoader if stage == "train" else DataLoader)(
            BatchDataset(self.inputs_of(stage), self.splits[stage].targets),
            sampler=self.sampler(stage),
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # otherwise each iteration would draw from the global generator
        )
