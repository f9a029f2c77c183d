"""Repetition: ratios computed by hand, and a naive loop over random texts."""

import random

import pytest

from distillery.runs.generate.clean.repetition import measures, repetitive
from distillery.runs.generate.clean.words import words
from fixtures.cleaning import filters


def shares(text: str) -> dict[str, float]:
    return {name: share for name, share, _ in measures(text, words(text))}


def test_ratios_computed_by_hand() -> None:
    lines = shares("one\ntwo\n\none\n three \none")  # five lines, two of which repeat; 17 characters, 6 of them theirs
    assert lines["duplicate_lines"] == 2 / 5
    assert lines["duplicate_line_characters"] == 6 / 17
    paragraphs = shares("ab\nc\n\nd\n\nab\nc\n\nab\nc")  # "ab\nc" three times, of 4 characters each, and "d"
    assert paragraphs["duplicate_paragraphs"] == 2 / 4
    assert paragraphs["duplicate_paragraph_characters"] == 8 / 13
    cats = shares("The cat sat. The cat ran! The dog sat?")  # "the cat" twice: 4 of 9 words of 3 letters
    assert cats["top_2gram"] == 4 / 9
    assert cats["top_3gram"] == 0
    letters = shares("a bb c d e a bb c d e f")  # a second "a bb c d e": 6 of 13 letters
    assert letters["duplicate_5gram"] == 6 / 13
    assert letters["duplicate_6gram"] == 0
    assert letters["top_4gram"] == 2 * 5 / 13  # "a bb c d" and "bb c d e" as often: the first
    loop = shares("no " * 12)
    assert loop["top_2gram"] == 1  # overlapping n-grams: each letter once
    assert loop["duplicate_10gram"] == 11 / 12


def naive(own: list[str], n: int) -> tuple[float, float]:
    """The shares of repeated n-grams and of the most frequent one, marked letter by letter."""
    letters = sum(len(word) for word in own)
    grams = [own[start : start + n] for start in range(len(own) - n + 1)]
    repeated = set[int]()
    for start in range(len(grams)):
        if any(grams[start] == grams[earlier] for earlier in range(start)):
            repeated |= {*range(start, start + n)}
    best, top = (1, 0), 0.0
    for gram in grams:
        at = [start for start in range(len(grams)) if grams[start] == gram]
        size = (len(at), sum(map(len, gram)))
        if len(at) > 1 and size > best:
            best = size
            inside = {place for start in at for place in range(start, start + n)}
            top = sum(len(own[place]) for place in inside) / letters
    return sum(len(own[place]) for place in repeated) / letters, top


@pytest.mark.parametrize("seed", range(20))
def test_ratios_are_those_of_a_naive_loop(seed: int) -> None:
    rng = random.Random(seed)
    own = [rng.choice(["a", "bb", "ccc"][: 2 + seed % 2]) for _ in range(rng.randrange(3, 40))]
    found = shares(" ".join(own))
    for n in range(2, 5):
        assert found[f"top_{n}gram"] == pytest.approx(naive(own, n)[1], abs=1e-12)
    for n in range(5, 11):
        assert found[f"duplicate_{n}gram"] == pytest.approx(naive(own, n)[0], abs=1e-12)


def test_limits_are_gophers() -> None:
    """Table A1 of Rae et al. 2021."""
    settings = filters().repetition
    limits = [settings.duplicate_lines, settings.duplicate_paragraphs, settings.duplicate_line_characters]
    assert [*limits, settings.duplicate_paragraph_characters] == [0.3, 0.3, 0.2, 0.2]
    assert [settings.top_2gram, settings.top_3gram, settings.top_4gram] == [0.2, 0.18, 0.16]
    assert [getattr(settings, f"duplicate_{n}gram") for n in range(5, 11)] == [0.15, 0.14, 0.13, 0.12, 0.11, 0.1]
    looping = "the river runs on and on and " * 10  # "on and" twice: 10 of 22 letters
    assert repetitive(looping, settings) == {
        "measure": "top_2gram",
        "share": 0.4545,
        "limit": 0.2,
        "repeated": "on and",
    }
    assert repetitive(looping[:60], settings) is None  # fewer than 50 words
    assert repetitive(" ".join(f"w{at}" for at in range(60)), settings) is None
