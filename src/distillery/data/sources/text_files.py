"""Your own texts: CSV and JSON Lines files with a text and a label in each row."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from datasets import Dataset, Features, Value, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from datasets.exceptions import DatasetGenerationError
from datasets.utils import logging

from distillery.core.errors import UserError
from distillery.data.raw_data import RawData
from distillery.data.sources.table import Columns, Table
from distillery.data.sources.table_splits import table_data

Given = str | Path
Quoting = Literal[0, 3]  # csv.QUOTE_MINIMAL, csv.QUOTE_NONE
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
    """Texts, pairs of texts or lists of words from a file with one JSON object per line.

    Args:
        path, test, val: the files; without `test` the test split is `test_fraction` of `path`.
        text, second, words, label, classes, regression, drop_empty: see `Columns`.

    Raises:
        UserError: a file cannot be read, a line is not a JSON object, or what `table_data` refuses.
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
    separator = separator or ("\t" if path.suffix.lower() == ".tsv" else ",")
    quoting: Quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    header, lines = _check_csv(path, separator, quoting)
    columns = _load(
        Dataset.from_csv,
        path,
        features=Features(dict.fromkeys(header, Value("string"))),
        names=header,
        header=0,
        sep=separator,
        quoting=quoting,
        keep_default_na=False,
        encoding="utf-8-sig",
    )
    return Table(f"'{path}'", columns, lines)


def _check_csv(path: Path, separator: str, quoting: Quoting) -> tuple[list[str], list[int]]:
    """The header, and the line at which each row begins.

    `datasets` reads CSV with pandas, which does not tell the lines and is lenient: after a stray quote it silently
    merges rows, and it pads short ones. Python's strict parser goes first and refuses both.
    """
    header: list[str] = []
    lines: list[int] = []
    csv.field_size_limit(LONGEST_FIELD)
    line = 1
    try:
        with _readable(path), path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=separator, quoting=quoting, strict=True)
            for row in reader:
                if len(row) > 1 or "".join(row).strip():  # pandas skips blank lines
                    header = header or row
                    lines.append(line)
                    if len(row) != len(header):
                        raise UserError(
                            f"'{path}', line {line}: {len(row)} fields, but the header has {len(header)}. Enclose a "
                            f"text that contains {separator!r} in quotes, or set data.source.separator."
                        )
                line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"'{path}', line {line}: {error}. Double a quote within quotes; if quotes are ordinary characters, set "
            "data.source.quotes=false."
        ) from error
    if len(lines) < 2:
        raise UserError(f"'{path}' is empty: it must have a header and rows.")
    if len(set(header)) != len(header):
        raise UserError(f"'{path}' has two columns of the same name: {', '.join(header)}.")
    return header, lines[1:]


def _read_jsonl(path: Path) -> Table:
    with _readable(path), path.open(encoding="utf-8-sig", newline="\n") as file:
        lines = {number: line for number, line in enumerate(file, 1) if line.strip()}
    if not lines:
        raise UserError(f"'{path}' is empty: it must have a JSON object on each line.")
    try:
        columns = _load(Dataset.from_json, path)
    except UserError as error:
        raise UserError(_bad_json(path, lines) or str(error)) from error
    rows = len(next(iter(columns.values())))
    if rows != len(lines):
        raise UserError(_bad_json(path, lines) or f"'{path}' has {rows} JSON objects on {len(lines)} lines.")
    return Table(f"'{path}'", columns, list(lines))


def _bad_json(path: Path, lines: Mapping[int, str]) -> str | None:
    """What is wrong with the first line that is not an object, or that holds half of a surrogate pair."""
    for number, line in lines.items():
        try:
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode()
        except ValueError as error:
            return f"'{path}', line {number}: not valid JSON ({error})."
        if not isinstance(row, dict):
            return f"'{path}', line {number}: it must be a JSON object, not {line.strip()[:60]!r}."
    return None


def _load(read: Callable[..., Any], path: Path, **options: Any) -> dict[str, Sequence[Any]]:
    """The columns of a file. Nothing is printed, and nothing is left in the cache of `datasets`."""
    verbosity, no_bars = logging.get_verbosity(), are_progress_bars_disabled()
    logging.set_verbosity(logging.CRITICAL)
    disable_progress_bars()
    try:
        with TemporaryDirectory() as cache:
            plain_name = Path(cache) / "file"  # in the real one [, * and :: would have a meaning of their own
            plain_name.symlink_to(path.resolve())
            data = read(str(plain_name), cache_dir=cache, keep_in_memory=True, **options)
    except (DatasetGenerationError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read: {error.__cause__ or error}.") from error
    finally:
        logging.set_verbosity(verbosity)
        if not no_bars:
            enable_progress_bars()
    return {name: data[name][:] for name in data.column_names}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' cannot be read: {error}.") from error
