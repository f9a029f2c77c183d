"""Soft labels: the class probabilities that a table, or a file beside the data, holds for its samples."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillery.core.errors import UserError

TOLERANCE = 0.02  # of the sum of a row: probabilities may be rounded to two decimals
SHOWN = 6  # numbers in a message


@dataclass(frozen=True)
class StoredTargets:
    """The outputs of a teacher for the samples of a data set.

    Attributes:
        logits: of the splits that have them for all samples: float32 [N, C], by position in the split's `inputs`.
        classes: what the columns are called; None: unknown.
        source: where they come from.
        sha256: of the file, or of the column.
        remarks: for the user.
    """

    logits: Mapping[Any, Tensor]
    classes: tuple[str, ...] | None
    source: str
    sha256: str
    remarks: tuple[str, ...]


def read_soft_labels(values: Sequence[Any], classes: Sequence[str], where: Callable[[int], str]) -> Tensor:
    """The soft labels in a column of a table.

    Args:
        values: for each sample a list of one probability per class, or a mapping from the classes to them; or either
            of these as JSON. None or a blank text: the sample has none. Of a regression, a number for each sample.
        classes: those of the data, in order; empty for a regression.
        where: names the place of a sample in messages.

    Returns: float32 [N, C], or [N, 1] of a regression. Samples without a soft label are rows of NaN.

    Raises:
        UserError: a value is something else, has another number of classes, or is not a distribution.
    """
    found = np.full((len(values), len(classes) or 1), np.nan, dtype=np.float32)
    given: list[int] = []
    for row, value in enumerate(values):
        try:
            numbers = _numbers(value, classes)
        except (TypeError, ValueError) as error:
            raise UserError(f"{where(row)}: {error}") from None
        if numbers is not None:
            found[row] = numbers
            given.append(row)
    if classes:
        fix = "If they are logits, take their softmax."
        refuse_no_distribution(found[given], lambda row: where(given[row]), fix)
    return torch.from_numpy(found)


def refuse_no_distribution(values: np.ndarray[Any, Any], where: Callable[[int], str], fix: str) -> None:
    """Refuse rows [N, C] that are not distributions over the classes.

    Raises:
        UserError: with the place of the first such row, and how many there are.
    """
    sums = values.sum(1, dtype=np.float64)
    for wrong, problem in (
        (~np.isfinite(values).all(1), "one of them is not a finite number"),
        ((values < 0).any(1), "one of them is negative"),
        (np.abs(sums - 1) > TOLERANCE, "they do not add up to 1"),
    ):
        if rows := np.flatnonzero(wrong).tolist():
            numbers = ", ".join(f"{value:.4g}" for value in values[rows[0]][:SHOWN])
            shown = f"[{numbers}{', …' if values.shape[1] > SHOWN else ''}]"
            more = f" ({len(rows):,} of {len(values):,} rows are like this)" if len(rows) > 1 else ""
            raise UserError(f"{where(rows[0])}: {shown} are no probabilities: {problem}{more}. {fix}")


def is_blank(value: Any) -> bool:
    """Whether it stands for no value: None, a blank text, or the not-a-number that pandas writes."""
    return (
        value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, float) and value != value)
    )


def _numbers(value: Any, classes: Sequence[str]) -> np.ndarray[Any, Any] | None:
    """One soft label; None if there is none."""
    if is_blank(value):
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(f"{value[:60]!r} is no list of probabilities in JSON, such as [0.9, 0.1].") from None
    if isinstance(value, Mapping):
        if value.keys() != set(classes):
            theirs = ", ".join(map(str, value))
            raise ValueError(f"its classes are {theirs}, and those of the data {', '.join(classes)}.")
        value = [value[name] for name in classes]
        if all(map(is_blank, value)):
            return None
    if classes and isinstance(value, int | float):
        raise ValueError(
            f"{value!r} is a single number, and a soft label is a list of {len(classes)} probabilities. Hard labels "
            "belong in data.source.label."
        )
    numbers = np.asarray(value, dtype=np.float32)
    if numbers.size != (len(classes) or 1) or numbers.ndim > 1:
        wanted = f"{len(classes)} classes ({', '.join(classes[:SHOWN])})" if classes else "one number for each sample"
        raise ValueError(f"{numbers.size} numbers, where the data have {wanted}.")
    return numbers
