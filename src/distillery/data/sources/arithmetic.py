"""Sums with exact answers: prompts and completions made here, for causal language models."""

from typing import Annotated

import torch
from annotated_types import Ge, Le
from pydantic import PositiveInt
from torch import Tensor

from distillery.core.errors import UserError
from distillery.core.random import permutation
from distillery.data.raw_data import RawData, Split, Texts

SEED, DRAW = 0, 7  # of the order in which the sums are drawn


def arithmetic(
    train: PositiveInt = 20_000,
    val: PositiveInt = 500,
    test: PositiveInt = 500,
    terms: Annotated[int, Ge(2), Le(7)] = 5,
    digits: Annotated[int, Ge(1), Le(3)] = 1,
) -> RawData:
    """Sums whose answers tell each step: the prompt `4+7+5+8+9=`, the completion `11,16,24,33`, the running sums.

    A wrong step spoils those that follow it. No sum is in two splits, nor twice in one; the same settings give the same
    sums, and a smaller `train` those of a larger one's beginning.

    Args:
        train, val, test: the number of sums in each split.
        terms: how many numbers are added.
        digits: of each number, with leading zeros.

    Raises:
        UserError: more sums are asked for than there are, or there are more than ten million.
    """
    places, wanted = terms * digits, train + val + test
    if places > 7 or wanted > 10**places:
        fix = f"fewer than {wanted:,} sums" if places <= 7 else "fewer terms or digits"
        raise UserError(
            f"data.source: {terms} numbers of {digits} digits make {10**places:,} sums. Ask for {fix} (at most "
            "10,000,000 can be drawn from)."
        )
    drawn = permutation(SEED, DRAW, 10**places)[:wanted]
    numbers = torch.stack([drawn // 10 ** (digits * i) % 10**digits for i in range(terms)], 1)
    prompts = ["+".join(f"{number:0{digits}}" for number in row) + "=" for row in numbers.tolist()]
    answers = [",".join(map(str, row)) for row in numbers.cumsum(1)[:, 1:].tolist()]
    texts = Texts(prompts, completions=answers)
    targets = torch.zeros(wanted, dtype=torch.int64)

    def part(start: int, size: int) -> Split:
        indices: Tensor = torch.arange(start, start + size)
        return Split(texts, targets, indices)

    return RawData("arithmetic", (), train=part(val + test, train), val=part(test, val), test=part(0, test))
