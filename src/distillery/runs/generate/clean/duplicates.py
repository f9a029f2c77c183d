"""Near-duplicates of earlier texts, by MinHash and locality-sensitive hashing (Broder 1997; `datasketch`)."""

import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillery.core.errors import UserError
from distillery.runs.generate.clean.words import jaccard, shingles

PERMUTATIONS = 128
# Weights of false positives and false negatives in the choice of the bands. What the bands find is compared exactly, so
# that a false positive costs only time. At a threshold of 0.8 they are 14 bands of 9 values.
WEIGHTS = (0.1, 0.9)
COMPARED = 20  # the likeliest candidates, so that texts made from one template do not take quadratic time


Sketch = tuple[frozenset[str], Any]  # the word n-grams of a text, and their MinHash


class NearDuplicateIndex:
    """Texts as MinHash signatures of their sets of word n-grams, in an index by bands.

    A pair of Jaccard similarity s is found with probability 1 - (1 - s^r)^b for b bands of r values. Texts without
    words are never near-duplicates.

    Args:
        ngram: words of an n-gram.
        threshold: the similarity from which two texts are near-duplicates.

    Raises:
        UserError: datasketch is not installed.
    """

    def __init__(self, ngram: int, threshold: float) -> None:
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError as error:
            raise UserError(
                "Near-duplicates are found by the package datasketch: pip install 'distillery[generate]'. To keep "
                "them, set their thresholds to null."
            ) from error
        self._ngram, self._threshold = ngram, threshold
        self._bands = MinHashLSH(threshold, PERMUTATIONS, WEIGHTS)
        self._empty = MinHash(PERMUTATIONS, hashfunc=zlib.crc32)
        self._signatures: dict[int, NDArray[np.uint32]] = {}
        self._sketch = lru_cache(maxsize=1)(self._sketch_of)  # a text is sought and then added

    def find(self, text: str, compared: Callable[[int], tuple[str, str]]) -> tuple[int, float] | None:
        """The most similar added text with at least the threshold, of several the first.

        Args:
            compared: what is compared with the text that was added under a number: the two texts.

        Returns: its number, and the exact Jaccard similarity.
        """
        grams, sketch = self._sketch(text)
        candidates = sorted(self._bands.query(sketch)) if grams else []
        if len(candidates) > COMPARED:
            agreement = np.stack([self._signatures[number] for number in candidates]) == sketch.hashvalues
            candidates = [candidates[at] for at in np.argsort(-agreement.mean(1), kind="stable")[:COMPARED]]
        found = ((self._similarity(*compared(number)), -number) for number in candidates)
        best, number = max(found, default=(0.0, 0))
        return (-number, best) if best >= self._threshold else None

    def add(self, number: int, text: str) -> None:
        """Add a text under a new number."""
        grams, sketch = self._sketch(text)
        if grams:
            self._bands.insert(number, sketch, check_duplication=False)
            self._signatures[number] = sketch.hashvalues

    def _similarity(self, one: str, other: str) -> float:
        return jaccard(shingles(one, self._ngram), shingles(other, self._ngram))

    def _sketch_of(self, text: str) -> Sketch:
        grams = shingles(text, self._ngram)
        sketch = self._empty.copy()
        sketch.update_batch([gram.encode("utf-8", "surrogatepass") for gram in grams])
        return grams, sketch
