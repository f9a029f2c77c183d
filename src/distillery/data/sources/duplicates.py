"""Samples that occur more than once in a data set."""

from collections.abc import Hashable, Mapping, Sequence
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


def apart(
    keys: Mapping[str, Sequence[Hashable]],
    labels: Mapping[str, Sequence[Hashable] | None],
    noun: str,
    drop: bool,
    notes: list[str],
) -> dict[str, list[int]]:
    """For each split, the positions of its samples without repeated ones and without those of another split.

    Test has priority over val, val over train, and train over its unlabelled samples.

    Args:
        keys: of the samples of each split; equal ones have the same key.
        labels: two samples with the same key and other labels are both left out; None: there are no labels.
        noun: what the samples are called in the remarks.
        drop: False: keep all, and only say what was found.
        notes: the remarks, to which more are added.
    """
    verb = "left out" if drop else "found and kept"
    kept: dict[str, list[int]] = {}
    for part in (name for name in ("test", "val", "train", "unlabelled") if name in keys):
        own = keys[part]
        unique = distinct(own, labels[part])
        if unique.repeated or unique.contradictory:
            notes.append(
                f"{part}: {unique.repeated:,} repeated {noun} and {unique.contradictory:,} with contradictory labels "
                f"{verb}"
            )
        positions = unique.kept
        for other in kept:
            held = {keys[other][position] for position in kept[other]}
            foreign = [position for position in positions if own[position] not in held]
            if shared := len(positions) - len(foreign):
                notes.append(f"{part}: {shared:,} {noun} that are also in {other} {verb}")
            positions = foreign
        kept[part] = positions if drop else list(range(len(own)))
    return {part: kept[part] for part in keys}
