"""The settings of the filters, as `configs/clean.yaml` has them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Self, TypedDict

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import NonNegativeInt, PositiveInt

from distillery.config.spec import check_section
from distillery.core.errors import UserError

Share = Annotated[float, Ge(0), Le(1)]
Similarity = Annotated[float, Gt(0), Le(1)]


class Command(TypedDict):
    """What to clean and how to read and write it."""

    path: str
    out: str
    against: str | list[str] | None
    against_split: str
    encoding: str | None
    replace: bool


@dataclass(frozen=True)
class Length:
    """Bounds on an answer, inclusive; null: none. Words are separated by white space, as in `wc`."""

    min_words: NonNegativeInt | None
    max_words: PositiveInt | None
    min_characters: NonNegativeInt | None
    max_characters: PositiveInt | None


@dataclass(frozen=True)
class Repetition:
    """The largest shares of an answer that may be repetition, see `repetition.py`; null: any.

    Answers of fewer than `min_words` words are not measured: in a short text every repeated word is a large share.
    """

    min_words: NonNegativeInt
    duplicate_lines: Share | None
    duplicate_paragraphs: Share | None
    duplicate_line_characters: Share | None
    duplicate_paragraph_characters: Share | None
    top_2gram: Share | None
    top_3gram: Share | None
    top_4gram: Share | None
    duplicate_5gram: Share | None
    duplicate_6gram: Share | None
    duplicate_7gram: Share | None
    duplicate_8gram: Share | None
    duplicate_9gram: Share | None
    duplicate_10gram: Share | None


@dataclass(frozen=True)
class Refusal:
    """Regular expressions, by name, that are sought in the first `within` characters of an answer."""

    within: PositiveInt
    patterns: Mapping[str, str] | None


@dataclass(frozen=True)
class Format:
    """What every answer must be: valid JSON, a text in which the regular expression `pattern` is found, or both."""

    json: bool
    pattern: str | None


@dataclass(frozen=True)
class Language:
    """The languages (ISO 639-1) that answers may be in; null: any.

    An answer in another one is dropped if the detector gives it a probability of at least `confidence`. Answers of
    fewer than `min_characters` characters outside of code are not judged.
    """

    allowed: Annotated[list[str], MinLen(1)] | None
    confidence: Share
    min_characters: NonNegativeInt


@dataclass(frozen=True)
class Contamination:
    """How many words in a row a text must share with the test set to be contaminated."""

    ngram: PositiveInt


@dataclass(frozen=True)
class NearDuplicates:
    """Texts are near-duplicates if the Jaccard similarity of their sets of word n-grams is at least `threshold`.

    `threshold` null: near-duplicates are kept.
    """

    ngram: PositiveInt
    threshold: Similarity | None


@dataclass(frozen=True)
class Filters:
    """All filters, in the order in which they are applied; see `filters.REASONS`."""

    finish_reasons: Annotated[list[str], MinLen(1)] | None
    length: Length
    repetition: Repetition
    refusal: Refusal
    format: Format
    language: Language
    contamination: Contamination
    exact_duplicates: bool
    near_duplicate_prompts: NearDuplicates
    near_duplicate_texts: NearDuplicates

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """The settings of a config.

        Raises:
            UserError: an unknown setting, one of another type, or a regular expression that cannot be compiled.
        """
        made: dict[str, Any] = {}
        for field in fields(cls):
            section: Any = field.type
            if isinstance(section, type) and hasattr(section, "__dataclass_fields__"):
                made[field.name] = section(**check_section(field.name, given[field.name], section))
            else:
                made |= check_section("", {field.name: given[field.name]}, cls)
        patterns = {f"refusal.patterns.{name}": text for name, text in (made["refusal"].patterns or {}).items()}
        for name, pattern in {**patterns, "format.pattern": made["format"].pattern}.items():
            try:
                re.compile(pattern or "")
            except re.error as error:
                raise UserError(f"{name}={pattern}: not a regular expression: {error}.") from error
        return cls(**made)
