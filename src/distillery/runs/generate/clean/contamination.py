"""Texts of a test set that occur in the data: found by word n-grams, and shown."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from distillery.core.errors import UserError
from distillery.runs.generate.clean.answers import Evidence
from distillery.runs.generate.clean.rows import read_row
from distillery.runs.generate.clean.words import ngrams, words

SHOWN = 300  # characters of a test text in the evidence


class TestTexts:
    """The n-grams of a test set, each with the first test row that has it.

    A turn, completion or document is contaminated if it has n words in a row, after normalisation (see `words`), that
    also stand in a row in a text of the test set (n = 13: Brown et al. 2020, appendix C, and lm-evaluation-harness).
    Shorter test texts have no n-gram: a row whose longest text, or in a conversation whose prompt, has fewer than n
    words contaminates what consists of the same words from beginning to end.

    Args:
        rows: the name of each test row, with its content.
        n: words of an n-gram.
    """

    __test__ = False  # of pytest

    def __init__(self, rows: Iterable[tuple[str, Mapping[str, Any]]], n: int) -> None:
        self.n = n
        self.names: list[str] = []
        self.shown: list[str] = []
        self.grams: dict[str, int] = {}
        self.short: dict[str, int] = {}
        for number, (name, row) in enumerate(rows):
            question, texts = _texts_of(row)
            self.names.append(name)
            self.shown.append(question[:SHOWN])
            for text in texts:
                for gram in map(" ".join, ngrams(words(text), n)):
                    self.grams.setdefault(gram, number)
            asked = words(question)
            if 0 < len(asked) < n:
                self.short.setdefault(" ".join(asked), number)

    def contaminated(self, texts: Iterable[str]) -> Evidence | None:
        """The first run of words that also stand in the test set, and the test row.

        Args:
            texts: the parts of a row; no n-gram reaches from one into the next.
        """
        for text in texts:
            own = words(text)
            if (short := self.short.get(" ".join(own))) is not None:
                return self._evidence(own, short)
            grams = list(map(" ".join, ngrams(own, self.n)))
            start = next((at for at, gram in enumerate(grams) if gram in self.grams), None)
            if start is not None:
                end = next((at for at in range(start, len(grams)) if grams[at] not in self.grams), len(grams))
                return self._evidence(own[start : end + self.n - 1], self.grams[grams[start]])
        return None

    def _evidence(self, shared: Sequence[str], test: int) -> Evidence:
        return {
            "test_row": self.names[test],
            "shared_words": " ".join(shared),
            "count": len(shared),
            "test_text": self.shown[test],
        }


def _texts_of(row: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The question of a test row, and all of its texts; of a row of unknown format every text, at any depth."""
    try:
        known = read_row(row, 0, "")
    except UserError:
        texts = list(_strings(row))
        return max(texts, key=len, default=""), texts
    return known.prompt or known.whole, [*known.prompts, *known.answers]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _strings(each)
