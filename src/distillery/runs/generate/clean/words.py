"""Words and n-grams, as repetition, contamination and near-duplicates are measured in."""

import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache

# Thai, Lao, Burmese, Khmer, kana and Chinese characters: scripts without blanks between words.
WITHOUT_BLANKS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


@lru_cache(maxsize=8)  # several filters ask for the words of one answer
def words(text: str) -> Sequence[str]:
    """The words of a text without case and punctuation.

    The text is normalised to NFKC and case-folded, all punctuation and symbols (the Unicode categories P and S) are
    deleted, and what is left is split at white space, as GPT-3's decontamination (Brown et al. 2020, appendix C) and
    lm-evaluation-harness do with ASCII. In scripts without blanks each character is a word.
    """
    plain = unicodedata.normalize("NFKC", text).casefold().translate(_punctuation())
    return tuple(WITHOUT_BLANKS.sub(r" \g<0> ", plain).split())


def ngrams(given: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """All runs of n words; none if there are fewer words."""
    return zip(*(given[start:] for start in range(n)), strict=False)


def shingles(text: str, n: int) -> frozenset[str]:
    """The set of word n-grams of a text; of one with fewer than n words, all of its words as one."""
    own = words(text)
    return frozenset(map(" ".join, ngrams(own, min(n, max(len(own), 1)))))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """|A ∩ B| / |A ∪ B|; of two empty sets 1."""
    return len(one & other) / len(one | other) if one or other else 1.0


@cache
def _punctuation() -> dict[int, None]:
    return dict.fromkeys(code for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code))[0] in "PS")
