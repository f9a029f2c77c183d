"""Texts that occur more than once in a data set."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple


class Distinct(NamedTuple):
    """What `distinct` keeps, and how many texts it leaves out for each reason."""

    kept: list[int]  # positions, in order
    repeated: int
    contradictory: int

    def remark(self) -> str:
        return f"left out: {self.repeated:,} repeated, {self.contradictory:,} with contradictory labels"


def distinct(texts: Sequence[Hashable], labels: Sequence[Hashable] | None = None) -> Distinct:
    """The first occurrence of each text; no occurrence of a text that has contradictory labels."""
    first: dict[Hashable, int] = {}
    disputed: set[Hashable] = set()
    for position, text in enumerate(texts):
        known = first.setdefault(text, position)
        if labels is not None and labels[known] != labels[position]:
            disputed.add(text)
    kept = [position for text, position in first.items() if text not in disputed]
    contradictory = sum(text in disputed for text in texts)
    return Distinct(kept, len(texts) - len(kept) - contradictory, contradictory)
