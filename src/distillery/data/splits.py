"""Stratified draws of samples."""

from pathlib import Path

import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.core.paths import CONFIGS
from distillery.core.random import permutation

SPLIT_SEED = 0  # of every split which must not move with the run's seed
DRAW = -1  # in place of an epoch, so that no draw repeats the order of an epoch


def class_quotas(counts: Tensor, size: int) -> Tensor:
    """How many of `size` samples each class gets: in proportion to `counts` [C], by the largest remainder.

    Each class that has samples gets at least one, taken from the classes with the most.
    """
    exact = counts.double() * size / counts.sum()
    quotas = exact.long()
    remainders = exact - quotas
    largest = torch.sort(remainders, descending=True, stable=True).indices[: size - int(quotas.sum())]
    quotas[largest] += 1
    for label in ((counts > 0) & (quotas == 0)).nonzero().flatten().tolist():
        quotas[quotas.argmax()] -= 1
        quotas[label] = 1
    return quotas


def stratified(targets: Tensor, indices: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw `size` of `indices` [N] by class: (drawn, rest), both in order. `targets` are of all samples; those that
    are numbers, and no classes, are not looked at.

    Raises:
        UserError: `size` is above N or below the number of classes.
    """
    present = torch.zeros_like(indices) if targets.is_floating_point() else targets[indices]
    counts = torch.bincount(present)
    classes = int((counts > 0).sum())
    if not classes <= size <= len(indices):
        raise UserError(
            f"Cannot draw {size} of {len(indices)} samples with {classes} classes: "
            f"the size must be between {classes} (one a class) and {len(indices)}."
        )
    order = permutation(seed, DRAW, len(indices))
    drawn = torch.zeros(len(indices), dtype=torch.bool)
    for label, quota in enumerate(class_quotas(counts, size).tolist()):
        drawn[order[present[order] == label][:quota]] = True
    return indices[drawn], indices[~drawn]


def read_index(path: str | Path, indices: Tensor) -> Tensor:
    """The positions in the file `path` (relative to the repository), one a line; all are among `indices`.

    Raises:
        UserError: no such file, a line that is no number, a position twice, or one that is not there to train on.
    """
    try:
        lines = (CONFIGS.parent / path).read_text(encoding="utf-8").split()
        chosen = torch.tensor([int(line) for line in lines], dtype=torch.int64)
    except (OSError, ValueError) as error:
        raise UserError(f"data.train_index={path}: it must be a file with one position a line. {error}") from error
    if len(chosen.unique()) != len(chosen):
        raise UserError(f"data.train_index={path}: a position is named twice.")
    if len(foreign := chosen[~torch.isin(chosen, indices)]):
        raise UserError(
            f"data.train_index={path}: {len(foreign)} of {len(chosen)} positions are none of the training split, "
            f"{int(foreign[0])} for one. Validation and test images are not for training."
        )
    return chosen
