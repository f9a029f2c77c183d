"""What was kept, what was dropped and why, and who wrote it: counted while the rows pass by."""

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from rich.table import Table

from distillery.runs.generate.clean.answers import Evidence
from distillery.runs.generate.clean.filters import REASONS
from distillery.runs.generate.clean.rows import Row

EXAMPLES = 3  # of each reason
SHOWN = 160  # characters of a text in an example
EVIDENCE = 500  # characters of its evidence
WRITERS = {  # keys of a row that say what wrote it, and what the card calls them
    "model": "Model",
    "system_fingerprint": "System fingerprint",
    "template_sha256": "Prompt template (SHA-256)",
    "parameters": "Parameters",
    "licence": "Licence",
}

HINTS = {
    "near_duplicate_prompt": (
        " Prompts that share a long instruction are similar by it: near_duplicate_prompts.threshold=null keeps them."
    ),
    "contamination": " A phrase that many test rows begin with is no contamination: cut it from the test set.",
}


class Summary:
    """Counts of rows, by reason of `REASONS` and by what wrote them, with the first examples.

    Attributes:
        rows: how many there were.
        dropped: how many for each reason.
        examples: for each reason the line, the evidence and the answer of the first rows, each in one line of text.
        written_by: of the kept rows, how many have which value of each of `WRITERS`.
        usage: tokens of the kept rows.
        created: the earliest and the latest time of the kept rows, as ISO dates.
        reader: which data config reads the kept rows.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.dropped: Counter[str] = Counter()
        self.examples: dict[str, list[tuple[int, str, str]]] = {}
        self.written_by: dict[str, Counter[str]] = {}
        self.usage: Counter[str] = Counter()
        self.created: list[str] = []
        self.reader = "messages"

    @property
    def kept(self) -> int:
        return self.rows - self.dropped.total()

    def keep(self, row: Row) -> None:
        """Count a row that is kept."""
        self.rows += 1
        if row.answers == (row.content,):  # a document
            self.reader = "plain_text"
        for key in WRITERS:
            if (value := row.given.get(key)) is not None:
                self.written_by.setdefault(key, Counter())[str(value)] += 1
        usage = row.given.get("usage")
        if isinstance(usage, Mapping):
            self.usage.update({key: value for key, value in usage.items() if isinstance(value, int)})
        if (time := _iso(row.given.get("created"))) is not None:
            self.created = [min([time, *self.created]), max([time, *self.created])]

    def drop(self, row: Row, reason: str, evidence: Evidence) -> None:
        """Count a row that is dropped."""
        self.rows += 1
        self.dropped[reason] += 1
        if self.dropped[reason] <= EXAMPLES:
            why = "; ".join(f"{key}: {value}" for key, value in evidence.items())
            self.examples.setdefault(reason, []).append((row.line, one_line(why, EVIDENCE), one_line(row.answer)))

    def remarks(self) -> list[str]:
        """Reasons for which so many rows were dropped that the filter may be wrong for the data."""
        return [
            f"{count:,} of {self.rows:,} rows were dropped because {REASONS[reason]}: check the examples, and the "
            f"settings of this filter.{HINTS.get(reason, '')}"
            for reason, count in self.dropped.items()
            if 2 * count > self.rows
        ]

    def table(self) -> Table:
        """The reasons with counts, shares and an example, for the terminal."""
        table = Table("dropped because", "rows", "%", "for example", box=None, pad_edge=False)
        for column in (1, 2):
            table.columns[column].justify = "right"
        for reason in REASONS:
            if count := self.dropped[reason]:
                line, why, _ = self.examples[reason][0]
                table.add_row(reason, f"{count:,}", f"{100 * count / self.rows:.1f}", f"line {line}: {one_line(why)}")
        return table


def one_line(text: str, most: int = SHOWN) -> str:
    """The beginning of a text in one line."""
    plain = " ".join(text[: 2 * most].split())
    return plain if len(plain) <= most else f"{plain[:most].rstrip()} …"


def _iso(time: Any) -> str | None:
    """Seconds since 1970, as OpenAI's API gives them, or an ISO date."""
    if isinstance(time, int | float):
        return datetime.fromtimestamp(time, UTC).isoformat(timespec="seconds")
    return time if isinstance(time, str) else None
