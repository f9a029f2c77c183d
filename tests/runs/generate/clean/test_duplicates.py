"""Near-duplicates: recall and precision against exact Jaccard similarities of sets."""

import random

import pytest

from distillery.runs.generate.clean.duplicates import NearDuplicateIndex
from distillery.runs.generate.clean.words import shingles

VOCABULARY = [f"w{number}" for number in range(5000)]


def sets_of(text: str, n: int) -> set[tuple[str, ...]]:
    own = text.split()
    return {tuple(own[start : start + n]) for start in range(len(own) - n + 1)}


def altered(text: str, rng: random.Random, changes: int) -> str:
    own = text.split()
    for at in rng.sample(range(len(own)), changes):
        own[at] = rng.choice(VOCABULARY)
    return " ".join(own)


@pytest.mark.parametrize(("n", "threshold"), [(5, 0.8), (2, 0.8), (3, 0.5)])
def test_recall_and_precision(n: int, threshold: float) -> None:
    """Of pairs at the threshold the bands find about 87 %, of pairs 0.1 above it 99 %; below it none is reported."""
    rng = random.Random(0)
    kept = [" ".join(rng.choices(VOCABULARY, k=80)) for _ in range(250)]
    index = NearDuplicateIndex(n, threshold)
    for number, text in enumerate(kept):
        index.add(number, text)
    above, near, below = [], [], 0
    for number, text in enumerate(kept):
        for changes in (0, 1, 2, 3, 5, 8, 12):
            other = altered(text, rng, changes)
            a, b = sets_of(text, n), sets_of(other, n)
            exact = len(a & b) / len(a | b)
            found = index.find(other, lambda at, other=other: (other, kept[at]))  # type: ignore[misc]
            if exact < threshold:
                below += 1
                assert found is None
            else:
                (near if exact < threshold + 0.1 else above).append(found is not None)
                assert found is None or found == (number, pytest.approx(exact, abs=1e-12))
    assert min(len(above), len(near), below) > 100
    assert sum(above) / len(above) > 0.98
    assert sum(near) / len(near) > 0.85


def test_the_most_similar_of_many_is_found() -> None:
    """Though more texts than are compared look alike."""
    rng = random.Random(1)
    base = " ".join(rng.choices(VOCABULARY, k=100))
    kept = [altered(base, rng, 4) for _ in range(100)]
    index = NearDuplicateIndex(1, 0.9)
    for number, text in enumerate(kept):
        index.add(number, text)
    for number in (0, 57, 99):
        assert index.find(kept[number], lambda at, number=number: (kept[number], kept[at])) == (number, 1.0)  # type: ignore[misc]


def test_short_texts_and_texts_without_words() -> None:
    assert shingles("Yes, it is!", 5) == {"yes it is"}
    index = NearDuplicateIndex(5, 0.8)
    kept = ["Yes, it is!", "?!"]
    for number, text in enumerate(kept):
        index.add(number, text)
    assert index.find("yes it IS", lambda at: ("yes it IS", kept[at])) == (0, 1.0)
    assert index.find("yes it was", lambda at: ("yes it was", kept[at])) is None
    assert index.find("...", lambda at: ("...", kept[at])) is None
