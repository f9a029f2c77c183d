"""Stratified draws of samples."""

import torch
from torch import Tensor

from distillery.data.random import permutation
from distillery.errors import UserError

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
    """Draw `size` of `indices` [N] by class: (drawn, rest), both in order. `targets` are of all samples.

    Raises:
        UserError: `size` is above N or below the number of classes.
    """
    present = targets[indices]
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
