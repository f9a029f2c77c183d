"""A table of texts and labels, read from a file or the hub, and the meaning of its columns."""

import json
import math
import unicodedata
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from distillery.core.errors import UserError, did_you_mean

SHOWN = 3  # examples in a message
EXCLUDING = (
    ("regression", "classes"),
    ("regression", "label=null"),
    ("regression", "words"),
    ("classes", "label=null"),
    ("words", "label=null"),
    ("words", "second"),
    ("words", "soft_label"),
    ("multi_label", "regression"),
    ("multi_label", "label=null"),
    ("multi_label", "words"),
    ("multi_label", "soft_label"),
)


SoftLabel = str | Mapping[str, str]


@dataclass(frozen=True)
class Columns:
    """Which column of a table holds what.

    Args:
        text: the column of the texts, or of the first text of each pair.
        label: the column of the labels; None: no text is labelled. Training texts whose label is empty are unlabelled
            ones, and so are all if train lacks the column and test has it.
        second: the column of the second text of each pair; None: the texts are not pairs.
        words: instead of `text`, the column of lists of words, each with a list of labels (token classification).
        classes: the allowed labels, in order; None: the labels of the training texts, sorted.
        regression: the labels are numbers.
        drop_empty: leave out rows with an empty text; False: refuse them.
        soft_label: the column of the class probabilities that a teacher gave (see `read_soft_labels`), or the column of
            each class; None: there are none.
        multi_label: each text has any number of labels: a list, or text with `label_separator` between them. An empty
            list is a text to which no label applies; one without any value is unlabelled.
        label_separator: see `multi_label`; text that begins with a bracket is a list in JSON.

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
    soft_label: SoftLabel | None = None
    multi_label: bool = False
    label_separator: str = "|"

    def __post_init__(self) -> None:
        given = {
            "regression": self.regression,
            "classes": self.classes is not None,
            "label=null": self.label is None,
            "words": self.words is not None,
            "second": self.second is not None,
            "soft_label": self.soft_label is not None,
            "multi_label": self.multi_label,
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
    notes: tuple[str, ...] = ()  # remarks on how it was read

    def column(self, option: str, name: str) -> list[Any]:
        """The values of the column `name`, which the user set as data.source.`option`."""
        if name not in self.columns:
            hint = did_you_mean(name, self.columns)
            raise UserError(f"data.source.{option}={name}: {self.where} has no such column.{hint}")
        return list(self.columns[name])

    def __len__(self) -> int:
        return len(self.lines)

    def take(self, rows: Sequence[int]) -> Self:
        """These rows alone."""
        columns = {name: [values[row] for row in rows] for name, values in self.columns.items()}
        return replace(self, columns=columns, lines=[self.lines[row] for row in rows])

    def followed_by(self, other: Self) -> Self:
        """The rows of both, which have the same columns."""
        columns = {name: [*values, *other.columns[name]] for name, values in self.columns.items()}
        where = f"{self.where} and {other.where}"
        return replace(self, where=where, columns=columns, lines=[*self.lines, *other.lines])

    def with_column(self, name: str, value: Any) -> Self:
        """The same table with a column that holds this value in every row."""
        return replace(self, columns={**self.columns, name: [value] * len(self)})

    def places(self, rows: Sequence[int]) -> str:
        """`4 rows (line 2, 5, 9, …)`."""
        shown = ", ".join(str(self.lines[row]) for row in rows[:SHOWN]) + (", …" if len(rows) > SHOWN else "")
        return f"{len(rows):,} row{'s' if len(rows) > 1 else ''} ({self.unit} {shown})"

    def refuse(
        self, name: str, values: Sequence[Any], problem: str, wrong: Callable[[Any], bool], fix: str = ""
    ) -> None:
        """Raise UserError if any of the values of the column `name` is `wrong`: where, and the first one."""
        if rows := [row for row, value in enumerate(values) if wrong(value)]:
            shown = f"{self.places(rows)}: {values[rows[0]]!r}"
            raise UserError(f"{self.where}: column '{name}' {problem} in {shown}.{fix}")


@dataclass(frozen=True)
class Samples(Table):
    """Checked rows of a table, in up to four columns.

    `first`: the texts, or lists of words; `second`: the other texts of pairs; `labels`: strings, numbers or, for lists
    of words, tuples of strings; `soft`: soft labels as they are written.
    """

    @property
    def labels(self) -> Sequence[Any] | None:
        return self.columns.get("labels")

    def keys(self) -> list[Hashable]:
        """What two samples share if they are the same but for the label."""
        first = [text if isinstance(text, str) else tuple(text) for text in self.columns["first"]]
        return list(zip(first, self.columns["second"], strict=True)) if "second" in self.columns else list(first)


def read_samples(table: Table, columns: Columns, need_labels: bool = True) -> tuple[Samples, int]:
    """The samples of `table`, and how many rows with an empty text were left out.

    Args:
        need_labels: refuse an empty label; False: it becomes None.

    Raises:
        UserError: a column is missing, a text is empty or not a string, a label is missing or of the wrong kind, or
            the numbers of words and labels differ.
    """
    read, empty = read_texts(table, columns.text, columns.second, columns.words)
    if not columns.drop_empty:
        refuse_empty(table, empty)
    if columns.label is not None:
        read["labels"] = table.column("label", columns.label)
    if columns.soft_label is not None:
        read["soft"] = _soft_labels(table, columns.soft_label)
    samples = Samples(table.where, read, table.lines, table.unit).take(sorted({*range(len(table))} - {*empty}))
    if columns.label is not None:
        labels = samples.columns["labels"]
        is_missing = _is_unknown if columns.multi_label else _is_missing
        missing = [row for row, label in enumerate(labels) if is_missing(label)]
        if missing and need_labels:
            fix = " A list without labels is written as []." if columns.multi_label else ""
            samples.refuse(columns.label, labels, "has no label", is_missing, fix)
        known = samples.take(sorted({*range(len(samples))} - {*missing}))
        read_labels = iter(_labels(known, columns.label, columns))
        labels = [None if is_missing(label) else next(read_labels) for label in labels]
        samples = replace(samples, columns={**samples.columns, "labels": labels})
    return samples, len(empty)


def read_texts(
    table: Table, text: str, second: str | None = None, words: str | None = None
) -> tuple[dict[str, list[Any]], list[int]]:
    """The columns `first` and, of pairs, `second`, as `Samples` have them; and the rows in which one of them is empty.

    Args:
        text, second, words: see `Columns`.

    Raises:
        UserError: a column is missing, or a text in it is not a string.
    """
    read = {"first": _texts(table, "text", text) if words is None else _words(table, words)}
    if second is not None:
        read["second"] = _texts(table, "second", second)
    return read, [row for row, texts in enumerate(zip(*read.values(), strict=True)) if not all(texts)]


def refuse_empty(table: Table, rows: Sequence[int]) -> None:
    """Raise UserError if there are `rows` with an empty text."""
    if rows:
        raise UserError(
            f"{table.where}: the text is empty in {table.places(rows)}. Correct the file, or leave these rows out "
            "with data.source.drop_empty=true."
        )


def _soft_labels(table: Table, names: SoftLabel) -> list[Any]:
    """The soft labels of the rows as they are written; of several columns a mapping from the classes to the numbers."""
    if isinstance(names, str):
        return table.column("soft_label", names)
    columns = [table.column(f"soft_label.{label}", name) for label, name in names.items()]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def class_remarks(columns: Columns, classes: Sequence[str], texts: int) -> list[str]:
    """Classes that look alike, and classes that look like the numbers of a regression.

    Raises:
        UserError: almost every text has another number.
    """
    remarks, alike = [], dict[str, list[str]]()
    for name in classes:
        alike.setdefault("".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    if same := [names for names in alike.values() if len(names) > 1]:
        shown = "; ".join(" and ".join(map(repr, names)) for names in same[:SHOWN])
        remarks.append(f"classes that differ only by case or blanks: {shown}{'; …' if len(same) > SHOWN else ''}")
    if columns.classes is None and all(map(_is_number, classes)) and any("." in name for name in classes):
        found = (
            f"the labels are numbers with fractions, taken for {len(classes)} classes; to predict the numbers set "
            "task=regression data.source.regression=true"
        )
        if 2 * len(classes) > texts:
            raise UserError(f"data.source.label={columns.label}: {found}")
        remarks.append(found)
    return remarks


def _texts(table: Table, option: str, name: str) -> list[Any]:
    """The texts of a column; a missing or blank one becomes an empty string."""
    values = table.column(option, name)
    lists = any(isinstance(text, list) for text in values)
    fix = f" For lists of words set data.source.words={name} task=token_classification." if lists else ""
    table.refuse(name, values, "is not text", lambda text: not isinstance(text, str | None), fix)
    return [text if text and text.strip() else "" for text in values]


def _words(table: Table, name: str) -> list[Any]:
    """The lists of words of a column; a missing one becomes an empty list."""
    values = [[] if words is None else words for words in table.column("words", name)]
    table.refuse(name, values, "is not a list of words", lambda words: not _is_list_of_words(words))
    return values


def _labels(samples: Samples, name: str, columns: Columns) -> list[Any]:
    """The labels as strings, as floats, or as a tuple of strings for each list of words."""
    labels = samples.columns["labels"]
    if columns.words is not None:
        for line, label, words in zip(samples.lines, labels, samples.columns["first"], strict=True):
            if not isinstance(label, list) or len(label) != len(words):
                found = f"{len(label)} labels" if isinstance(label, list) else repr(label)
                raise UserError(
                    f"{samples.where}, {samples.unit} {line}: {len(words)} words, but {found} in column '{name}'. It "
                    "must be a list with one label per word."
                )
        bare = [row for row, label in enumerate(labels) if any(_is_missing(each) for each in label)]
        if bare:
            raise UserError(f"{samples.where}: a word has no label in column '{name}' in {samples.places(bare)}.")
        return [tuple(map(_class_name, label)) for label in labels]
    if columns.regression:
        fix = " For classes set data.source.regression=false."
        samples.refuse(name, labels, "is not a number", lambda label: not _is_number(label), fix)
        return [float(label) for label in labels]
    if columns.multi_label:
        lists = [_listed(label, columns.label_separator) for label in labels]
        samples.refuse(
            name, labels, "is not a list of labels", lambda label: _listed(label, columns.label_separator) is None
        )
        return [tuple(sorted({_class_name(each) for each in one or ()})) for one in lists]
    fix = (
        " If each text has any number of labels, set task=multi_label data.source.multi_label=true. If each word has "
        "one, set data.source.words to the column of the words."
    )
    samples.refuse(name, labels, "has more than one label", lambda label: isinstance(label, list | dict), fix)
    return [_class_name(label) for label in labels]


def _listed(label: Any, separator: str) -> list[Any] | None:
    """The labels of one text; None: it is no list."""
    if isinstance(label, str) and label.lstrip().startswith("["):
        try:
            label = json.loads(label)
        except ValueError:
            return None
    found = label.split(separator) if isinstance(label, str) else label
    if not isinstance(found, list) or any(isinstance(each, list | dict) for each in found):
        return None
    return [each for each in found if not _is_missing(each)]


def _is_unknown(labels: Any) -> bool:
    """Whether nothing is said of the labels; an empty list says that there are none."""
    return labels != [] and _is_missing(labels)


def _is_missing(label: Any) -> bool:
    """Whether it is None, blank, an empty list, or the not-a-number that pandas writes for a missing value."""
    return label is None or label != label or label == [] or not str(label).strip()


def _class_name(label: Any) -> str:
    """A number without a fraction is written as a whole one: pandas turns 1 into 1.0 where a label is missing."""
    return str(int(label) if isinstance(label, float) and label.is_integer() else label).strip()


def _is_list_of_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) and word.strip() for word in value)


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
