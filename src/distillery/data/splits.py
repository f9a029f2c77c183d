"""Stratified subsets of samples, and subsets listed in a file."""

from pathlib import Path

import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.core.random import permutation

SPLIT_SEED = 0  # for splits that are the same whatever the run's seed
DRAW = -1  # in place of an epoch, so that a draw differs from the order of every epoch


def class_quotas(counts: Tensor, size: int) -> Tensor:
    """How many of `size` samples each class gets: in proportion to `counts` [C], by the largest-remainder method.

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
    """Draw `size` of `indices` [N], stratified by class.

    Args:
        targets: those of all samples; floating-point targets count as a single class.

    Returns: (drawn, rest), both in the order of `indices`.

    Raises:
        UserError: `size` is greater than N or smaller than the number of classes.
    """
    present = torch.zeros_like(indices) if targets.is_floating_point() else targets[indices]
    counts = torch.bincount(present)
    classes = int((counts > 0).sum())
    if not classes <= size <= len(indices):
        raise UserError(
            f"Cannot draw {size} of {len(indices)} samples with {classes} classes: "
            f"the size must be between {classes} (one per class) and {len(indices)}."
        )
    order = permutation(seed, DRAW, len(indices))
    drawn = torch.zeros(len(indices), dtype=torch.bool)
    for label, quota in enumerate(class_quotas(counts, size).tolist()):
        drawn[order[present[order] == label][:quota]] = True
    return indices[drawn], indices[~drawn]


def read_index(path: str | Path, indices: Tensor) -> Tensor:
    """The positions listed in the file `path`, one per line, all of them in `indices`.

    Raises:
        UserError: no such file, a line that is not a number, or a position that is listed twice or not in `indices`.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split()
        chosen = torch.tensor([int(line) for line in lines], dtype=torch.int64)
    except (OSError, ValueError) as error:
        raise UserError(f"data.train_index={path}: expected a file with one position per line. {error}") from error
    if len(chosen.unique()) != len(chosen):
        raise UserError(f"data.train_index={path}: it lists a position twice.")
    if len(foreign := chosen[~torch.isin(chosen, indices)]):
        raise UserError(
            f"data.train_index={path}: {len(foreign)} of {len(chosen)} positions are not in the training split, for "
            f"instance {int(foreign[0])}. Validation and test samples must not be trained on."
        )
    return chosen
