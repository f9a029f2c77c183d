"""One's own texts: files with a text and a label in each row."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distillery.core.errors import UserError
from distillery.data.raw import RawData
from distillery.data.sources.table import Columns, Table
from distillery.data.sources.table_splits import table_data

Given = str | Path


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
    """Texts, or pairs of texts, from a CSV or TSV file with a heading.

    Every field is read as it stands: "NA" and "null" are texts like others, "01" is the label "01".

    Args:
        path, test, val: the files; without `test` the test split is `test_fraction` of `path`.
        text, second, label, classes, regression, drop_empty: see `Columns`.
        separator: of the fields; None: a tab in files that end in .tsv, else a comma.
        quotes: a field may stand in double quotes; False: a quote is a character like others, as in GLUE's files.

    Raises:
        UserError: a file cannot be read or taken apart, or what `table_data` refuses.
    """
    columns = Columns(text, label, second, None, classes, regression, drop_empty)
    return _data(path, val, test, columns, test_fraction, lambda file: _read_csv(file, separator, quotes))


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
    """Texts, pairs of texts or lists of words from a file with a JSON object in each line.

    Args:
        path, test, val: the files; without `test` the test split is `test_fraction` of `path`.
        text, second, words, label, classes, regression, drop_empty: see `Columns`.

    Raises:
        UserError: a file cannot be read, a line is no JSON object, or what `table_data` refuses.
    """
    columns = Columns(text, label, second, words, classes, regression, drop_empty)
    return _data(path, val, test, columns, test_fraction, _read_jsonl)


def _data(
    path: Given,
    val: Given | None,
    test: Given | None,
    columns: Columns,
    test_fraction: float,
    read: Callable[[Path], Table],
) -> RawData:
    files = {"train": path, "val": val, "test": test}
    tables = {part: read(Path(file)) for part, file in files.items() if file is not None}
    return table_data(Path(path).stem, columns, tables, test_fraction)


def _read_csv(path: Path, separator: str | None, quotes: bool) -> Table:
    """Python's reader and not pandas': it knows the line of each row, also after a quoted line break."""
    if separator is None:
        separator = "\t" if path.suffix.lower() == ".tsv" else ","
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(
                file,
                delimiter=separator,
                quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
                strict=True,
            )
            line = 1
            for row in reader:
                if row:
                    rows.append(row)
                    lines.append(line)
                line = reader.line_num + 1
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' cannot be read: {error}.") from error
    except csv.Error as error:
        raise UserError(
            f"'{path}', line {line}: {error}. Within quotes a quote must be doubled; if quotes are characters like "
            "others, set data.source.quotes=false."
        ) from error
    if not rows:
        raise UserError(f"'{path}' is empty: it must have a heading and rows.")
    heading = rows[0]
    if len(set(heading)) != len(heading):
        raise UserError(f"'{path}' names a column twice: {', '.join(heading)}.")
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(heading):
            raise UserError(
                f"'{path}', line {line}: {len(row)} fields, but the heading has {len(heading)}. Put a text with "
                f"{separator!r} in it in quotes, or set data.source.separator."
            )
    values = zip(*rows[1:], strict=True) if len(rows) > 1 else ((),) * len(heading)
    return Table(f"'{path}'", dict(zip(heading, values, strict=True)), lines[1:])


def _read_jsonl(path: Path) -> Table:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' cannot be read: {error}.") from error
    for line, item in enumerate(content.split("\n"), 1):  # splitlines would also split at characters within texts
        if not item.strip():
            continue
        try:
            row = json.loads(item)
        except json.JSONDecodeError as error:
            raise UserError(f"'{path}', line {line}: no JSON ({error}).") from error
        if not isinstance(row, dict):
            raise UserError(f"'{path}', line {line}: it must be a JSON object, not {item.strip()[:60]!r}.")
        rows.append(row)
        lines.append(line)
    names = dict.fromkeys(name for row in rows for name in row)
    return Table(f"'{path}'", {name: [row.get(name) for row in rows] for name in names}, lines)
