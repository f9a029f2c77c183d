"""A table of texts and labels, read from a file or the hub, and the meaning of its columns."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from distillery.core.errors import UserError, did_you_mean

SHOWN = 3  # examples in a message
EXCLUDING = (
    ("regression", "classes"),
    ("regression", "label=null"),
    ("regression", "words"),
    ("classes", "label=null"),
    ("words", "label=null"),
    ("words", "second"),
)


@dataclass(frozen=True)
class Columns:
    """Which column of a table holds what.

    Args:
        text: the column of the texts, or of the first text of each pair.
        label: the column of the labels; None: the texts are not labelled.
        second: the column of the second text of each pair; None: the texts are not pairs.
        words: instead of `text`, the column of lists of words, each with a list of labels (token classification).
        classes: the allowed labels, in order; None: the labels of the training texts, sorted.
        regression: the labels are numbers.
        drop_empty: leave out rows with an empty text; False: refuse them.

    Raises:
        UserError: two options exclude each other.
    """

    text: str
    label: str | None
    second: str | None = None
    words: str | None = None
    classes: Sequence[Any] | None = None
    regression: bool = False
    drop_empty: bool = False

    def __post_init__(self) -> None:
        given = {
            "regression": self.regression,
            "classes": self.classes is not None,
            "label=null": self.label is None,
            "words": self.words is not None,
            "second": self.second is not None,
        }
        for one, other in EXCLUDING:
            if given[one] and given[other]:
                raise UserError(f"data.source.{one} and data.source.{other} exclude each other.")


@dataclass(frozen=True)
class Table:
    """Columns of equal length; None is a missing value. `lines` is the place of each row in the file, for messages."""

    where: str  # its name in messages
    columns: Mapping[str, Sequence[Any]]
    lines: Sequence[int]
    unit: str = "line"

    def column(self, option: str, name: str) -> list[Any]:
        """The values of the column `name`, which the user set as data.source.`option`."""
        if name not in self.columns:
            hint = did_you_mean(name, self.columns)
            raise UserError(f"data.source.{option}={name}: {self.where} has no such column.{hint}")
        return list(self.columns[name])

    def places(self, rows: Sequence[int]) -> str:
        """`4 rows (line 2, 5, 9, …)`."""
        shown = ", ".join(str(self.lines[row]) for row in rows[:SHOWN]) + (", …" if len(rows) > SHOWN else "")
        return f"{len(rows):,} row{'s' if len(rows) > 1 else ''} ({self.unit} {shown})"


@dataclass(frozen=True)
class Samples:
    """Checked rows of a table: texts (or lists of words) and labels (strings, numbers or tuples of strings)."""

    table: Table
    rows: list[int]
    first: list[Any]
    second: list[str] | None
    labels: list[Any] | None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: Sequence[int]) -> "Samples":
        def of(values: list[Any] | None) -> Any:
            return None if values is None else [values[position] for position in positions]

        return replace(self, rows=of(self.rows), first=of(self.first), second=of(self.second), labels=of(self.labels))

    def keys(self) -> list[Hashable]:
        """What two samples share if they are the same but for the label."""
        first = [text if isinstance(text, str) else tuple(text) for text in self.first]
        return list(first) if self.second is None else list(zip(first, self.second, strict=True))


def read_samples(table: Table, columns: Columns) -> tuple[Samples, int]:
    """The samples of `table`, and how many rows with an empty text were left out.

    Raises:
        UserError: a column is missing, a text is empty or not a string, a label is missing or of the wrong kind, or
            the numbers of words and labels differ.
    """
    first: list[Any] = _texts(table, "text", columns.text) if columns.words is None else _words(table, columns.words)
    second = None if columns.second is None else _texts(table, "second", columns.second)
    labels = None if columns.label is None else table.column("label", columns.label)
    empty = [row for row, text in enumerate(first) if not text or (second is not None and not second[row])]
    if empty and not columns.drop_empty:
        raise UserError(
            f"{table.where}: the text is empty in {table.places(empty)}. Correct the file, or leave these rows out "
            "with data.source.drop_empty=true."
        )
    samples = Samples(table, list(range(len(first))), first, second, labels)
    filled = samples.take(sorted({*samples.rows} - {*empty}))
    if filled.labels is not None:
        filled = replace(filled, labels=_labels(filled, filled.labels, columns))
    return filled, len(empty)


def _texts(table: Table, option: str, name: str) -> list[str]:
    """The texts of a column; a missing or blank one becomes an empty string."""
    values = table.column(option, name)
    if wrong := [row for row, text in enumerate(values) if not isinstance(text, str | None)]:
        raise UserError(f"{table.where}: column '{name}' is not text in {table.places(wrong)}: {values[wrong[0]]!r}.")
    return [text if text and text.strip() else "" for text in values]


def _words(table: Table, name: str) -> list[list[str]]:
    """The lists of words of a column; a missing one becomes an empty list."""
    values = [[] if words is None else words for words in table.column("words", name)]
    wrong = [
        row
        for row, words in enumerate(values)
        if not isinstance(words, list) or not all(isinstance(word, str) and word.strip() for word in words)
    ]
    if wrong:
        raise UserError(
            f"{table.where}: column '{name}' is not a list of words in {table.places(wrong)}: {values[wrong[0]]!r}."
        )
    return values


def _labels(samples: Samples, labels: list[Any], columns: Columns) -> list[Any]:
    """The labels as strings, as floats, or as a tuple of strings for each list of words."""
    table, column = samples.table, f"column '{columns.label}'"
    rows = list(zip(samples.rows, labels, strict=True))
    if missing := [row for row, label in rows if label is None or not str(label).strip()]:
        raise UserError(f"{table.where}: {column} has no label in {table.places(missing)}.")
    if columns.words is not None:
        for (row, label), words in zip(rows, samples.first, strict=True):
            if not isinstance(label, list) or len(label) != len(words):
                found = f"{len(label)} labels" if isinstance(label, list) else repr(label)
                raise UserError(
                    f"{table.where}, {table.unit} {table.lines[row]}: {len(words)} words, but {found} in {column}. "
                    "It must be a list with one label per word."
                )
        return [tuple(map(str, label)) for label in labels]
    if columns.regression:
        if wrong := [(row, label) for row, label in rows if not _is_number(label)]:
            raise UserError(
                f"{table.where}: {column} is not a number in {table.places([row for row, _ in wrong])}: "
                f"{wrong[0][1]!r}. For classes set data.source.regression=false."
            )
        return [float(label) for label in labels]
    if wrong := [(row, label) for row, label in rows if isinstance(label, list | dict)]:
        raise UserError(
            f"{table.where}: {column} has more than one label in {table.places([row for row, _ in wrong])}. Lists of "
            "labels need lists of words: set data.source.words to their column."
        )
    return [str(label).strip() for label in labels]


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
