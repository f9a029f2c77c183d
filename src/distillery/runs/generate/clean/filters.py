"""All filters on one row, in a fixed order: a row is dropped for the first reason that applies."""

from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any

from distillery.data.conversations import THINK
from distillery.runs.generate.clean.answers import Evidence, refuses, wrong_format, wrong_length
from distillery.runs.generate.clean.contamination import TestTexts
from distillery.runs.generate.clean.duplicates import NearDuplicateIndex
from distillery.runs.generate.clean.kept_rows import KeptRows
from distillery.runs.generate.clean.language import LanguageFilter
from distillery.runs.generate.clean.repetition import repetitive
from distillery.runs.generate.clean.rows import Row
from distillery.runs.generate.clean.settings import Filters, NearDuplicates

# In the order in which they are applied: cheap ones first, and duplicates last, so that a row is a duplicate of kept
# rows only.
REASONS = {
    "finish_reason": "the model did not end the text itself",
    "empty": "there is no answer to learn from",
    "length": "an answer is too short or too long",
    "repetition": "an answer repeats itself",
    "refusal": "an answer begins with a refusal",
    "format": "an answer lacks the required format",
    "language": "an answer is in another language",
    "contamination": "words in a row are also in the test set",
    "exact_duplicate": "an earlier row has the same text",
    "near_duplicate_prompt": "an earlier row has almost the same prompt",
    "near_duplicate_text": "an earlier row has almost the same text",
}


class RowFilters:
    """The filters, with what they remember of the rows that are kept.

    Args:
        kept: holds the rows that are kept, by number.

    Raises:
        UserError: a package that a filter needs is not installed.
    """

    def __init__(self, settings: Filters, test_texts: TestTexts | None, kept: KeptRows) -> None:
        self._settings, self._test_texts, self._kept = settings, test_texts, kept
        self._language = LanguageFilter(settings.language)
        self._exact: dict[bytes, int] = {}
        self._asked = set[tuple[bytes, Any]]()
        self._prompts = _index(settings.near_duplicate_prompts)
        self._texts = _index(settings.near_duplicate_texts)

    def keep_or_drop(self, row: Row) -> tuple[str, Evidence] | None:
        """Keep the row, or say the first reason of `REASONS` to drop it with its evidence."""
        dropped = next(((reason, why) for reason, why in self._judged(row) if why is not None), None)
        if dropped is None:
            self._remember(row)
        return dropped

    def _judged(self, row: Row) -> Iterator[tuple[str, Evidence | None]]:
        """Each reason with the evidence for it, or None."""
        settings = self._settings
        yield "finish_reason", _finish_reason(row, settings.finish_reasons)
        yield "empty", {"row": row.empty} if row.empty else None
        yield "length", _first(row, lambda answer: wrong_length(answer, settings.length))
        yield "repetition", _first(row, lambda answer: repetitive(answer, settings.repetition))
        yield "refusal", _first(row, lambda answer: refuses(_said(answer), settings.refusal))
        yield "format", _first(row, lambda answer: wrong_format(_said(answer), settings.format))
        yield "language", _first(row, lambda answer: self._language.other_language(_said(answer)))
        if self._test_texts is not None:
            yield "contamination", self._test_texts.contaminated((*row.prompts, *row.answers))
        if settings.exact_duplicates:
            same = self._exact.get(_digest(row.content))
            yield "exact_duplicate", None if same is None else {"duplicate_of_line": self._kept[same].line}
        yield "near_duplicate_prompt", self._near_duplicate_prompt(row)
        yield "near_duplicate_text", self._near_duplicate_text(row)

    def _near_duplicate_prompt(self, row: Row) -> Evidence | None:
        """Several answers to one prompt are none: rows with the same prompt and the same `index`, if they have one."""
        if self._prompts is None or _asked(row) in self._asked:
            return None
        found = self._prompts.find(row.prompt, lambda number: (row.prompt, self._kept[number].prompt))
        return found and self._evidence(*found, lambda kept: kept.prompt)

    def _near_duplicate_text(self, row: Row) -> Evidence | None:
        """Rows with the same prompt are compared by their answers alone."""
        if self._texts is None:
            return None

        def compared(number: int) -> tuple[str, str]:
            kept = self._kept[number]
            return (row.answer, kept.answer) if kept.prompt == row.prompt else (row.whole, kept.whole)

        found = self._texts.find(row.whole, compared)
        return found and self._evidence(*found, lambda kept: kept.whole)

    def _evidence(self, number: int, similarity: float, text: Callable[[Row], str]) -> Evidence:
        kept = self._kept[number]
        return {"duplicate_of_line": kept.line, "jaccard": round(similarity, 4), "text": text(kept)}

    def _remember(self, row: Row) -> None:
        number = len(self._kept)
        if self._prompts is not None and _asked(row) not in self._asked:
            self._prompts.add(number, row.prompt)
        if self._texts is not None:
            self._texts.add(number, row.whole)
        self._asked.add(_asked(row))
        self._exact.setdefault(_digest(row.content), number)
        self._kept.append(row)


def _finish_reason(row: Row, allowed: list[str] | None) -> Evidence | None:
    """Rows that do not tell are kept."""
    found = row.given.get("finish_reason")
    return None if allowed is None or found is None or found in allowed else {"finish_reason": found}


def _first(row: Row, judge: Callable[[str], Evidence | None]) -> Evidence | None:
    """The evidence against the first answer that has some."""
    return next((why for answer in row.answers if (why := judge(answer)) is not None), None)


def _said(answer: str) -> str:
    """The answer without the reasoning that precedes it: a trace weighs refusals, and has no format."""
    return THINK.sub("", answer)


def _index(settings: NearDuplicates) -> NearDuplicateIndex | None:
    return None if settings.threshold is None else NearDuplicateIndex(settings.ngram, settings.threshold)


def _asked(row: Row) -> tuple[bytes, Any]:
    """What the answers to one prompt have in common: the prompt, and its number among the prompts."""
    return _digest(row.prompt), str(row.given.get("index"))


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
