"""Your own texts: CSV and JSON Lines files with a text and a label in each row."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distillery.core.errors import UserError
from distillery.data.raw_data import RawData
from distillery.data.sources.table import Columns, Table
from distillery.data.sources.table_splits import table_data

Given = str | Path
LONGEST_FIELD = 2**31 - 1  # Python's default of 131,072 characters is too small for a court ruling


def text_csv(
    path: Given,
    text: str = "text",
    label: str | None = "label",
    second: str | None = None,
    test: Given | None = None,
    val: Given | None = None,
    classes: Sequence[Any] | None = None,
    regression: bool = False,
    test_fraction: float = 0.2,
    drop_empty: bool = False,
    separator: str | None = None,
    quotes: bool = True,
) -> RawData:
    """Texts, or pairs of texts, from a CSV or TSV file with a header row.

    Every field is read as a string: "NA" and "null" are texts like any other, and "01" and "1" are two labels.

    Args:
        path, test, val: the files; without `test` the test split is `test_fraction` of `path`.
        text, second, label, classes, regression, drop_empty: see `Columns`.
        separator: between the fields; None: a tab in files that end in .tsv, else a comma.
        quotes: fields may be enclosed in double quotes; False: a quote is an ordinary character, as in GLUE's files.

    Raises:
        UserError: a file cannot be read or parsed, or what `table_data` refuses.
    """
    columns = Columns(text, label, second, None, classes, regression, drop_empty)
    tables = _tables(lambda file: _read_csv(file, separator, quotes), train=path, val=val, test=test)
    return table_data(Path(path).stem, columns, tables, test_fraction)


def jsonl(
    path: Given,
    text: str = "text",
    label: str | None = "label",
    second: str | None = None,
    words: str | None = None,
    test: Given | None = None,
    val: Given | None = None,
    classes: Sequence[Any] | None = None,
    regression: bool = False,
    test_fraction: float = 0.2,
    drop_empty: bool = False,
) -> RawData:
    """Texts, pairs of texts or lists of words from a file with one JSON object per line.

    Args:
        path, test, val: the files; without `test` the test split is `test_fraction` of `path`.
        text, second, words, label, classes, regression, drop_empty: see `Columns`.

    Raises:
        UserError: a file cannot be read, a line is not a JSON object, or what `table_data` refuses.
    """
    columns = Columns(text, label, second, words, classes, regression, drop_empty)
    tables = _tables(_read_jsonl, train=path, val=val, test=test)
    return table_data(Path(path).stem, columns, tables, test_fraction)


def _tables(read: Callable[[Path], Table], **files: Given | None) -> dict[str, Table]:
    return {part: read(Path(file)) for part, file in files.items() if file is not None}


def _read_csv(path: Path, separator: str | None, quotes: bool) -> Table:
    separator = separator or ("\t" if path.suffix.lower() == ".tsv" else ",")
    if len(separator) != 1 or separator in "\r\n":
        raise UserError(f"data.source.separator={separator!r} must be a single character, and not the end of a line.")
    csv.field_size_limit(LONGEST_FIELD)
    rows: dict[int, list[str]] = {}  # by the line at which each begins
    line = 1
    try:
        with _readable(path), path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(
                file, delimiter=separator, quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE, strict=True
            )
            for row in reader:
                if len(row) > 1 or (row and not row[0].isspace()):  # not a blank line
                    rows[line] = row
                line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"'{path}', line {line}: {error}. Double a quote within quotes; if quotes are ordinary characters, set "
            "data.source.quotes=false."
        ) from error
    if len(rows) < 2:
        raise UserError(f"'{path}' is empty: it must have a header and rows.")
    header = rows.pop(next(iter(rows)))
    if len(set(header)) != len(header):
        raise UserError(f"'{path}' has two columns of the same name: {', '.join(header)}.")
    for line, row in rows.items():
        if len(row) != len(header):
            raise UserError(
                f"'{path}', line {line}: {len(row)} fields, but the header has {len(header)}. Enclose a text that "
                f"contains {separator!r} in quotes, or set data.source.separator."
            )
    return Table(f"'{path}'", dict(zip(header, zip(*rows.values(), strict=True), strict=True)), list(rows))


def _read_jsonl(path: Path) -> Table:
    rows: dict[int, dict[str, Any]] = {}  # by line
    with _readable(path), path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                rows[number] = _json_object(line, f"'{path}', line {number}")
    if not rows:
        raise UserError(f"'{path}' is empty: it must have a JSON object on each line.")
    names = dict.fromkeys(name for row in rows.values() for name in row)
    return Table(f"'{path}'", {name: [row.get(name) for row in rows.values()] for name in names}, list(rows))


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line, object_pairs_hook=_distinct_keys)
        json.dumps(row, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error}).") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: it must be a JSON object, not {line.strip()[:60]!r}.")
    return row


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(row := dict(pairs)) != len(pairs):
        raise ValueError(f"a key occurs twice: {', '.join(key for key, _ in pairs)}")
    return row


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' cannot be read: {error}.") from error
