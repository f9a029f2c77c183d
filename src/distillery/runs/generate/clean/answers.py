"""Filters on one answer: its length, whether it refuses, whether it has the required format."""

import json
import re
from typing import Any

from distillery.runs.generate.clean.settings import Format, Length, Refusal

Evidence = dict[str, Any]  # why a row is dropped, in JSON
APOSTROPHES = str.maketrans("’ʼ`", "'''")


def wrong_length(answer: str, settings: Length) -> Evidence | None:
    """The count that is out of bounds, with the bound."""
    for unit, count in (("words", len(answer.split())), ("characters", len(answer))):
        least, most = getattr(settings, f"min_{unit}"), getattr(settings, f"max_{unit}")
        if least is not None and count < least:
            return {unit: count, f"min_{unit}": least}
        if most is not None and count > most:
            return {unit: count, f"max_{unit}": most}
    return None


def refuses(answer: str, settings: Refusal) -> Evidence | None:
    """The pattern that is found in the beginning of the answer, and what it has found.

    Case is ignored, and typographic apostrophes are straight ones. A refusal stands at the beginning; a later "I
    cannot" is a character's or a quotation.
    """
    beginning = answer.translate(APOSTROPHES).strip()[: settings.within]
    for name, pattern in (settings.patterns or {}).items():
        if found := re.search(pattern, beginning, re.IGNORECASE):
            return {"pattern": name, "found": found[0]}
    return None


def wrong_format(answer: str, settings: Format) -> Evidence | None:
    """What the answer lacks: valid JSON (RFC 8259: no NaN), or a match of the pattern (`re.search`)."""
    if settings.json:
        try:
            json.loads(answer, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            return {"json": str(error)}
    if settings.pattern is not None and not re.search(settings.pattern, answer):
        return {"pattern": settings.pattern}
    return None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not valid JSON")
