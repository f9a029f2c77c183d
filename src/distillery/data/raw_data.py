"""What a source returns: samples with targets, and the split each belongs to."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from distillery.core.errors import UserError, did_you_mean
from distillery.data.splits import SPLIT_SEED, stratified

UNLABELLED = -1  # the class of a sample without a label, which PyTorch's losses refuse; as a number it is NaN


@dataclass(frozen=True)
class Split:
    """Part of a set of samples: `indices` are positions in `inputs` and `targets`.

    `inputs` are `Images` (`images.py`), `MaskedImages` (`masks.py`), `Texts` or, once these are tokenised, `Tokens`
    (`tokens.py`).
    """

    inputs: Any
    # Classes int64 [N], zeros if there are none; float32 [N], the targets of a regression; or float32 [N, C], 0 or 1
    # for each label.
    targets: Tensor
    indices: Tensor  # int64, at most N
    labelled: Tensor | None = None  # bool [N]; None: every sample has its label, if the data have any
    soft_labels: Tensor | None = None  # float32 [N, C], NaN where a sample has none; see `soft_labels.py`
    extra: Mapping[str, Tensor] = field(default_factory=dict)  # [N, ...], served with each batch by these names

    @classmethod
    def whole(cls, inputs: Any, targets: Tensor, labelled: Tensor | None = None) -> "Split":
        """All samples. The targets of those without a label are replaced by `UNLABELLED`."""
        return cls(inputs, targets, torch.arange(len(targets)))._hiding(labelled)

    @property
    def labelled_indices(self) -> Tensor:
        """Those of the samples that have a label."""
        return self.indices if self.labelled is None else self.indices[self.labelled[self.indices]]

    @property
    def unlabelled_indices(self) -> Tensor:
        return self.indices[:0] if self.labelled is None else self.indices[~self.labelled[self.indices]]

    @property
    def mask(self) -> Tensor | None:
        """`labelled`; None if every sample of this part has a label."""
        return self.labelled if len(self.unlabelled_indices) else None

    def divided(self, size: int, seed: int = SPLIT_SEED) -> tuple["Split", "Split"]:
        """`size` of the labelled samples, drawn by class, and the rest. Raises UserError: see `stratified`."""
        drawn, _ = stratified(self.targets, self.labelled_indices, size, seed)
        rest = self.indices[~torch.isin(self.indices, drawn)]
        return replace(self, indices=drawn), replace(self, indices=rest)

    def keeping_labels(self, indices: Tensor) -> "Split":
        """The same samples, of which only those at `indices` still have a label."""
        labelled = torch.zeros(len(self.targets), dtype=torch.bool)
        labelled[indices] = True
        return self._hiding(labelled)

    def _renumbered(self, place: Tensor, number: int) -> "Split":
        """The same samples; `place` has the new number of each class, of `number`, and at its end `UNLABELLED`."""
        inputs = self.inputs
        if isinstance(inputs, Texts) and inputs.labels is not None:
            return replace(self, inputs=replace(inputs, labels=[place[list(each)].tolist() for each in inputs.labels]))
        if (renumbered := getattr(inputs, "renumbered", None)) is not None:  # of images with masks
            return replace(self, inputs=renumbered(place))
        if self.targets.dim() == 2:
            targets = self.targets.new_zeros(len(self.targets), number)
            targets[:, place[:-1]] = self.targets
            return replace(self, targets=targets)
        return replace(self, targets=place[self.targets], soft_labels=None)

    def _hiding(self, labelled: Tensor | None) -> "Split":
        if labelled is None or labelled.all():
            return self
        hidden = float("nan") if self.targets.is_floating_point() else UNLABELLED
        without = ~labelled if self.targets.dim() == 1 else ~labelled[:, None]
        return replace(self, targets=self.targets.masked_fill(without, hidden), labelled=labelled)


@dataclass(frozen=True)
class RawData:
    """A data set with its own splits. Without `val`, the validation samples are cut from `train`.

    `remarks` are shown to the user: for instance, how many duplicates were left out.
    """

    name: str
    classes: tuple[str, ...]  # empty if the samples have none
    train: Split
    test: Split
    val: Split | None = None
    remarks: tuple[str, ...] = ()

    def with_classes(self, classes: Sequence[str]) -> "RawData":
        """The same samples with the numbers that their classes have among `classes`; soft labels are left out.

        The data may lack some of them, and may have them in another order.

        Raises:
            UserError: the data have classes that are none of these; with both lists.
        """
        if (own := list(self.classes)) == list(classes):
            return self
        if strange := [name for name in own if name not in classes]:
            lacking = ", ".join(name for name in classes if name not in own)
            raise UserError(
                f"'{self.name}' has classes that the run lacks: {', '.join(strange)}. The run's: {', '.join(classes)}"
                + (f"; of these the data lack {lacking}." if lacking else ".")
                + did_you_mean(strange[0], classes)
            )
        place = torch.tensor([list(classes).index(name) for name in own] + [UNLABELLED])
        parts = {part: getattr(self, part) for part in ("train", "test", "val")}
        moved = {part: split and split._renumbered(place, len(classes)) for part, split in parts.items()}
        return replace(self, classes=tuple(classes), **moved)


@dataclass(frozen=True)
class Texts:
    """N texts, or N pairs of texts, addressed by their position.

    With `labels` (token classification), each text is a list of words, with one label per word. With `completions`
    (causal language models) each text is a prompt, and only what follows it is learnt. With `conversations` each is a
    JSON object, see `sources/messages.py`. With `answers` each text is a question, and `second` the context that it is
    about: its right answers, as passages of the context, and where they begin in it; none if it has no answer.
    """

    first: Sequence[str] | Sequence[Sequence[str]]
    second: Sequence[str] | None = None
    labels: Sequence[Sequence[int]] | None = None
    completions: Sequence[str] | None = None
    conversations: bool = False
    answers: Sequence[Sequence[tuple[str, int]]] | None = None

    def __len__(self) -> int:
        return len(self.first)

    def content(self) -> bytes:
        """What identifies the texts, for the fingerprint."""
        sha = hashlib.sha256()
        for part in (self.first, self.second, self.labels, self.completions, self.answers):
            for item in part or ():
                sha.update(repr(item).encode() + b"\n")
        return sha.digest()
