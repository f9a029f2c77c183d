"""How much of a text is repetition: the measures of Gopher's training data (Rae et al. 2021, table A1).

https://arxiv.org/abs/2112.11446, "Repetition removal". The paper gives the limits and names the measures; the formulas
below are ours where it leaves a choice.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from distillery.runs.generate.clean.answers import Evidence
from distillery.runs.generate.clean.settings import Repetition
from distillery.runs.generate.clean.words import ngrams, words

TOP = (2, 3, 4)
DUPLICATE = (5, 6, 7, 8, 9, 10)
SHOWN = 100  # characters of a repeated part in the evidence


def repetitive(answer: str, settings: Repetition) -> Evidence | None:
    """The first measure above its limit, with what is repeated most."""
    own = words(answer)
    if len(own) < settings.min_words:
        return None
    for name, share, part in measures(answer, own):
        limit = getattr(settings, name)
        if limit is not None and share > limit:
            return {"measure": name, "share": round(share, 4), "limit": limit, "repeated": part[:SHOWN]}
    return None


def measures(text: str, own: Sequence[str]) -> Iterator[tuple[str, float, str]]:
    """The measures by name, each a share from 0 to 1, and what is repeated most.

    With parts p₁ … pₙ (non-empty lines; paragraphs, which blank lines separate) and R the indices i of the parts that
    equal an earlier one: `duplicate_lines` = |R| / n, `duplicate_line_characters` = Σ_{i∈R} |pᵢ| / Σᵢ |pᵢ|.

    With words w₁ … wₘ and the characters C(W) = Σ_{i∈W} |wᵢ| of a set of words: `top_ngram` = C(words in any occurrence
    of the most frequent n-gram) / C(all), 0 if no n-gram occurs twice; `duplicate_ngram` = C(words in any n-gram that
    has occurred before) / C(all). Each word counts once, however many n-grams it is in.

    Args:
        own: the text's words.
    """
    for name, separator in (("line", "\n"), ("paragraph", "\n\n")):
        parts = [part.strip() for part in text.split(separator) if part.strip()]
        counts = Counter(parts)
        most = counts.most_common(1)[0][0] if counts else ""
        characters = sum(map(len, parts))
        repeated = characters - sum(map(len, counts))
        yield f"duplicate_{name}s", _share(len(parts) - len(counts), len(parts)), most
        yield f"duplicate_{name}_characters", _share(repeated, characters), most
    for n in TOP:
        top, count = _most_frequent(ngrams(own, n))
        starts = (start for start, gram in enumerate(ngrams(own, n)) if gram == top) if count > 1 else ()
        yield f"top_{n}gram", _covered(own, starts, n), " ".join(top)
    repeats = True
    for n in DUPLICATE:  # a text that repeats no n-gram repeats no longer one
        repeated_starts = list(_repeats(ngrams(own, n))) if repeats else []
        repeats = bool(repeated_starts)
        first = " ".join(own[repeated_starts[0] : repeated_starts[0] + n]) if repeats else ""
        yield f"duplicate_{n}gram", _covered(own, repeated_starts, n), first


def _most_frequent(grams: Iterable[tuple[str, ...]]) -> tuple[tuple[str, ...], int]:
    """The most frequent n-gram and its count; of several the one with the most characters, then the first.

    If none occurs twice, none is returned.
    """
    counts = Counter(grams)
    most = max(counts.values(), default=0)
    if most < 2:
        return (), most
    return max((gram for gram, count in counts.items() if count == most), key=lambda gram: sum(map(len, gram))), most


def _repeats(grams: Iterable[tuple[str, ...]]) -> Iterator[int]:
    """Where an n-gram starts that has occurred before."""
    seen = set[tuple[str, ...]]()
    for start, gram in enumerate(grams):
        if gram in seen:
            yield start
        seen.add(gram)


def _covered(own: Sequence[str], starts: Iterable[int], n: int) -> float:
    """The share of the characters that lie in the n words after any of the starts, in ascending order."""
    covered = end = 0
    for start in starts:
        covered += sum(map(len, own[max(start, end) : start + n]))
        end = start + n
    return _share(covered, sum(map(len, own)))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
