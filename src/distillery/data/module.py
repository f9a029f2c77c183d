"""What the LightningDataModules of images and of texts have in common: splits, subsets, order, loaders."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import torch
import torch.distributed as dist
from annotated_types import Gt, Le
from lightning.pytorch import LightningDataModule
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.utils.data import DataLoader

from distillery.core.errors import UserError
from distillery.core.process import cpus
from distillery.data.loader import BatchDataset, ResumableLoader
from distillery.data.masks import MaskedImages
from distillery.data.raw_data import RawData, Split, Texts
from distillery.data.sampler import BatchKey, SeededBatchSampler
from distillery.data.soft_labels import StoredTargets
from distillery.data.splits import read_index

Stage = Literal["train", "val", "test"]
STAGES: tuple[Stage, ...] = get_args(Stage)
FEW = 4  # labelled samples in a batch


@dataclass(eq=False, repr=False)
class Data(LightningDataModule):
    """Serves batches from the splits of `source`: `target` and `index` [B], and the inputs of a subclass.

    Where some training samples have no label, their batches say which: `labelled` [B]. Validation and test samples,
    and a subset of the training samples, are drawn from the labelled ones.

    Args:
        source: returns the `RawData`; called once, with `root` if that is not None.
        batch_size, eval_batch_size: number of samples of all processes together.
        seed: of the order, the augmentation and the masking.
        train_size, train_fraction: the size of a stratified subset of the labelled training samples. Those without a
            label are all kept.
        train_index: instead of them, a file with the positions in the raw training set to train on, one per
            line.
        labelled_size: the number of training samples that keep their label, drawn by class; the others are treated as
            unlabelled. None: all.
        labelled_share: the share of labelled samples in each training batch. An epoch then serves each unlabelled
            sample once, and the labelled ones as often as that takes. 1: the unlabelled ones are left out, and an epoch
            has as many batches as with None. None: an epoch serves all samples once, as they come.
        balanced: an epoch serves all classes equally often, up to one: rare ones several times, of frequent ones a part
            that changes from epoch to epoch; in all as many labelled samples as there are.
        subset_seed: draws the subset of `train_size`, `train_fraction` or `labelled_size`; None: `seed` does.
        val_size: the number (below 1: the fraction) of training samples held out for validation, always the same
            ones; 0: none. None: the data set's own validation split, or else a tenth, at least one of each class.
        num_workers: processes that make batches, at most one for each CPU; data in memory need none.
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
    labelled_size: PositiveInt | None = None
    labelled_share: Annotated[float, Gt(0), Le(1)] | None = None
    balanced: bool = False
    subset_seed: NonNegativeInt | None = None
    val_size: NonNegativeInt | NonNegativeFloat | None = None
    num_workers: NonNegativeInt = 0
    drop_last: bool = False

    def __post_init__(self) -> None:
        super().__init__()
        self.targets: dict[str, StoredTargets] = {}  # by the teacher's name, see `stored_targets.py`
        self.resident = False  # whether the inputs live on an accelerator, where batches are made
        self._whole: Split | None = None  # the training split, where its unlabelled samples are left out

    @cached_property
    def raw(self) -> RawData:
        return self.source() if self.root is None else self.source(self.root)

    @cached_property
    def splits(self) -> dict[str, Split]:
        """The train, val (possibly empty) and test splits, as they are served."""
        train, val = self._validation()
        return self.served({"train": self._with_labels(self._subset(train)), "val": val, "test": self.raw.test})

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

    @property
    def distinct_views(self) -> int | None:
        """How many versions of each training sample all epochs have together; None: another one in each epoch."""
        return None if self.varies else 1

    @property
    def views_key(self) -> dict[str, str]:
        """What the versions of the training samples depend on, besides the data, by what it is called in messages."""
        return {}

    @property
    def mixes(self) -> bool:
        """Whether training samples are mixed with others: the targets of their batches are then soft."""
        return False

    def _validation(self) -> tuple[Split, Split]:
        train, own = self.raw.train, self.raw.val
        if own is not None:
            if self.val_size is not None:
                raise UserError(
                    f"'{self.raw.name}' has its own {len(own.indices)} validation samples: set data.val_size=null."
                )
            return train, own
        share = 0.1 if self.val_size is None else self.val_size
        available = len(train.labelled_indices)
        size = round(share * available) if 0 < share < 1 else int(share)
        if self.val_size is None and size and not train.targets.is_floating_point():
            size = max(size, len(train.targets[train.labelled_indices].unique()))  # one of each class at least
        if size == 0:
            return train, replace(train, indices=train.indices[:0])
        if size >= available:
            labelled = "" if train.mask is None else "labelled "
            raise UserError(f"data.val_size={share} leaves none of {available} {labelled}samples to train on.")
        try:
            val, rest = train.divided(size)
        except UserError as error:
            raise UserError(f"data.val_size={share}: {error}") from error
        return rest, val

    def _subset(self, train: Split) -> Split:
        available = len(train.labelled_indices)
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
        drawn = self._drawn(train, size, "train_size" if self.train_fraction is None else "train_fraction")
        return replace(train, indices=torch.cat([drawn, train.unlabelled_indices]).sort().values)

    def _with_labels(self, train: Split) -> Split:
        """The training split after `labelled_size` and `labelled_share`."""
        if self.labelled_size is not None:
            train = train.keeping_labels(self._drawn(train, self.labelled_size, "labelled_size"))
        share, size = self.labelled_share, len(train.labelled_indices)
        if share is None or train.mask is None:
            return train
        if not 0 < share <= 1:
            raise UserError(f"data.labelled_share={share} is not in (0, 1].")
        if not size:
            raise UserError(f"data.labelled_share={share}: none of the training samples has a label. Set it to null.")
        if share == 1:
            self._whole = train
            return replace(train, indices=train.labelled_indices)
        if self._repeats > size:
            raise UserError(
                f"data.labelled_share={share} asks for {self._repeats} labelled samples in a batch of "
                f"{self.batch_size}, and only {size} are there: at most {size / self.batch_size:.2g} is possible."
            )
        return train

    @property
    def _repeats(self) -> int:
        """How many labelled samples each batch has with a `labelled_share` below 1."""
        assert self.labelled_share is not None
        return min(max(1, round(self.labelled_share * self.batch_size)), self.batch_size - 1)

    def _drawn(self, train: Split, size: int, setting: str) -> Tensor:
        """The positions of `size` labelled samples, as the `setting` asks for."""
        try:
            return train.divided(size, self.seed if self.subset_seed is None else self.subset_seed)[0].indices
        except UserError as error:
            raise UserError(f"data.{setting}={getattr(self, setting)}: {error}") from error

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

    def with_targets(self, teacher: str, targets: StoredTargets) -> Self:
        """The same data with a teacher's outputs: batches of splits that have them hold `stored/<teacher>` [B, C]."""
        other = copy(self)
        other.fingerprint, other.targets = self.fingerprint, {**self.targets, teacher: targets}
        other.splits = {
            stage: replace(split, extra={**split.extra, f"stored/{teacher}": targets.logits[stage]})
            if stage in targets.logits
            else split
            for stage, split in self.splits.items()
        }
        return other

    def with_references(self, references: Mapping[str, Tensor]) -> Self:
        """The same data; the `target` of samples of these splits is what a teacher predicts, [N, D] by position."""
        other = copy(self)
        other.fingerprint = self.fingerprint
        own = {stage: replace(self.splits[stage], extra={"target": each}) for stage, each in references.items()}
        other.splits = {**self.splits, **own}
        return other

    def on(self, device: torch.device) -> Self:
        """The same data, for training on `device`; inputs that fit live there."""
        return self

    def labelled_alone(self) -> Self:
        """The same data without the unlabelled training samples, and with as many batches in an epoch."""
        other = self.narrowed(self.splits["train"].labelled_indices)
        other._whole = self.splits["train"]
        return other

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.raw.name

    @property
    def classes(self) -> tuple[str, ...]:
        return self.raw.classes

    @property
    def multi_label(self) -> bool:
        """Whether each sample has any number of labels: its target is 0 or 1 for each class."""
        return self.raw.train.targets.dim() == 2

    @property
    def sizes(self) -> dict[str, int]:
        return {stage: len(split.indices) for stage, split in self.splits.items()}

    @property
    def remarks(self) -> tuple[str, ...]:
        """Remarks on the data, for the user."""
        train, inputs = self.splits["train"], self.raw.train.inputs
        remarks = [*self.raw.remarks, *self._on_labels()]
        of_words = isinstance(inputs, Texts) and inputs.labels is not None
        if of_words or isinstance(inputs, MaskedImages):  # the words or pixels have classes, not the samples
            return tuple(remarks)
        targets = train.targets[train.labelled_indices]
        present = set(targets.any(0).nonzero().flatten().tolist() if self.multi_label else targets.tolist())
        absent = [name for label, name in enumerate(self.classes) if label not in present]
        if absent and present:
            remarks.append(f"train: no {'labelled ' if self.unlabelled else ''}sample of {', '.join(absent)}")
        return tuple(remarks)

    def _on_labels(self) -> Iterator[str]:
        """How many training samples have a label, how many of these a batch has, and how often each class is served."""
        if self.balanced:
            train = self.splits["train"]
            present = len(self._classes_of(train)[train.labelled_indices].unique())
            yield f"train: {present} classes, each about {self.labelled / present:.0f} times an epoch (data.balanced)"
        if self._whole is not None:
            why = "data.labelled_share=1" if self.labelled_share == 1 else "no loss of this method reads them"
            yield f"train: {len(self._whole.unlabelled_indices):,} unlabelled samples left out ({why})"
            yield "the labelled samples are repeated: an epoch has as many batches as with the unlabelled ones"
        if not self.unlabelled:
            return
        yield f"train: {self.labelled:,} labelled and {self.unlabelled:,} unlabelled samples"
        if self.labelled_share is not None:
            yield f"each batch has {self._repeats} labelled samples (data.labelled_share), repeated as needed"
        elif 0 < (mean := self.labelled / self.sizes["train"] * self.batch_size) < FEW:
            yield f"a batch has {mean:.2g} labelled samples on average; with data.labelled_share=0.5 half of it are"

    @property
    def labelled(self) -> int:
        """The number of training samples that have a label, if the data have any."""
        return len(self.splits["train"].labelled_indices)

    @property
    def unlabelled(self) -> int:
        """The number of training samples without a label."""
        return len(self.splits["train"].unlabelled_indices)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of each split: inputs (for image files, names and sizes), targets and indices."""
        sha, splits = hashlib.sha256(), dict(self.splits)
        if self._whole is not None:  # which samples are left out is a matter of how a run is trained
            splits["train"] = replace(self._whole, inputs=splits["train"].inputs)
        stores = {id(split.inputs): split.inputs for split in splits.values()}  # often shared
        contents = {key: hashlib.sha256(inputs.content()).digest() for key, inputs in stores.items()}
        for stage, split in splits.items():
            sha.update(stage.encode() + contents[id(split.inputs)])
            for values in (split.targets, split.indices):
                sha.update(values.numpy().tobytes())
        return sha.hexdigest()

    def seen_by_teacher(self, tokenizer: str | None = None) -> dict[str, str]:
        """What a teacher's signals of the training samples depend on, by what it is called in messages.

        Args:
            tokenizer: the teacher's, if it reads texts.
        """
        return {"data": hashlib.sha256(self.splits["train"].inputs.content()).hexdigest()} | self.views_key

    def split_sha256(self, stage: Stage) -> str:
        """SHA-256 of the inputs, targets and indices of a split."""
        split = self.splits[stage]
        values = (split.targets.numpy().tobytes(), split.indices.numpy().tobytes())
        return hashlib.sha256(b"".join((hashlib.sha256(split.inputs.content()).digest(), *values))).hexdigest()

    @cached_property
    def soft_labels_sha256(self) -> str:
        """SHA-256 of the source's soft labels. They are no part of the fingerprint: a baseline does not read them."""
        sha = hashlib.sha256()
        for split in (self.raw.train, self.raw.val, self.raw.test):
            if split is not None and split.soft_labels is not None:
                sha.update(split.soft_labels.numpy().tobytes())
        return sha.hexdigest()

    def setup(self, stage: str | None = None) -> None:
        """Read and split the data, and check the settings."""
        self.inputs_of("train")

    @property
    def workers(self) -> int:
        """The number of processes that make batches."""
        return min(self.num_workers, cpus())

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
        settings: dict[str, Any] = {
            "batch_size": self.batch_size if train else self.eval_batch_size,
            "seed": self.seed,
            "shuffle": train,
            "rank": dist.get_rank() if distributed else 0,
            "world": dist.get_world_size() if distributed else processes,
            "drop_last": train and self.drop_last,
            **self.order(stage),
        }
        split = self.splits[stage]
        if train and self.balanced:
            settings["classes"] = self._classes_of(split)
        if not train or self._whole is None:
            return SeededBatchSampler(**self._mixed(split), **settings)
        batches = len(SeededBatchSampler(**self._mixed(self._whole), **settings))
        repeats = min(self.batch_size, len(split.indices))
        return SeededBatchSampler(split.indices, repeated=split.indices, repeats=repeats, batches=batches, **settings)

    def _classes_of(self, split: Split) -> Tensor:
        """The class of each sample [N], to serve them equally often.

        Raises:
            UserError: the samples have no classes.
        """
        targets = split.targets
        if targets.is_floating_point() or targets.dim() != 1 or len(targets[split.labelled_indices].unique()) < 2:
            raise UserError(
                f"data.balanced=true serves all classes equally often, but the samples of '{self.name}' do not have "
                "one of several classes each. Set it to false."
            )
        return targets

    def _mixed(self, split: Split) -> dict[str, Any]:
        """The samples that a sampler serves once an epoch, and those that it repeats."""
        if self.labelled_share in (None, 1) or split.mask is None:
            return {"indices": split.indices}
        return {
            "indices": split.unlabelled_indices,
            "repeated": split.labelled_indices,
            "repeats": self._repeats,
        }

    def plain(self, size: int, augmented: bool = True) -> tuple[list[BatchKey], BatchDataset]:
        """Batches of `size` that hold every training sample once, the same batches on every process.

        Args:
            augmented: the samples are as in the first epoch; False: as those of the validation split are.
        """
        train = self.splits["train"]
        keys = list(SeededBatchSampler(train.indices, size, **self.order("train")))
        if augmented:
            return keys, self.dataset("train")
        other = copy(self)
        other.splits = {**self.splits, "val": train}
        return keys, other.dataset("val")

    def dataset(self, stage: Stage) -> BatchDataset:
        """Makes the batches of a split."""
        split = self.splits[stage]
        return BatchDataset(self.inputs_of(stage), split.targets, split.mask, split.extra)

    def without_inputs(self, stage: Stage) -> Iterator[dict[str, Tensor]]:
        """The batches of a split without the inputs, which take time to make; in the order in which it is evaluated."""
        split = self.splits[stage]
        dataset = BatchDataset(lambda *_: {}, split.targets, split.mask, split.extra)
        train = SeededBatchSampler(split.indices, self.eval_batch_size)
        return (dataset[key] for key in (train if stage == "train" else self.sampler(stage)))

    def example(self, samples: int = 8, stage: Stage = "train") -> dict[str, Tensor]:
        """A few samples of a split: of training, to find shapes and layers on; of test, to measure costs on.

        The test split does not depend on the training subset, so that a network has one cost.
        """
        key = next(iter(self.sampler(stage)))
        return self.dataset(stage)[key._replace(positions=key.positions[:samples])]

    def _loader(self, stage: Stage) -> DataLoader[dict[str, Tensor]]:
        return (ResumableLoader if stage == "train" else DataLoader)(
            self.dataset(stage),
            sampler=self.sampler(stage),
            batch_size=None,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available() and not self.resident,
            generator=torch.Generator(),  # otherwise each iteration would draw from the global generator
        )
