"""Your own texts: CSV and JSON Lines files with a text and a label in each row."""

import codecs
import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from encodings import aliases
from pathlib import Path
from typing import IO, Any

from distillery.core.errors import UserError, did_you_mean, did_you_mean_beside
from distillery.data.raw_data import RawData
from distillery.data.sources.table import Columns, SoftLabel, Table
from distillery.data.sources.table_splits import table_data

Given = str | Path
LONGEST_FIELD = 2**31 - 1  # Python's default of 131,072 characters is too small for a court ruling
SEPARATORS = {";": "';'", "\t": r"\t", "|": "'|'", ",": "','"}  # as the command line takes them
# Byte order marks, the longer ones first: that of UTF-32 begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
HALF = re.compile("[\ud800-\udfff]")  # half of a character beyond U+FFFF, as where a text was cut in an emoji
REPLACEMENT = "\ufffd"
ENCODING = "data.source.encoding"  # the setting, for messages


def text_csv(
    path: Given,
    text: str = "text",
    label: str | None = "label",
    second: str | None = None,
    test: Given | None = None,
    val: Given | None = None,
    unlabelled: Given | None = None,
    classes: Sequence[Any] | None = None,
    regression: bool = False,
    test_fraction: float = 0.2,
    drop_empty: bool = False,
    separator: str | None = None,
    quotes: bool = True,
    encoding: str | None = None,
    soft_label: SoftLabel | None = None,
    multi_label: bool = False,
    label_separator: str = "|",
) -> RawData:
    """Texts, or pairs of texts, from a CSV or TSV file with a header row.

    Every field is read as a string: "NA" and "null" are texts like any other, and "01" and "1" are two labels.

    Args:
        path, test, val: the files; without `test` the test split is `test_fraction` of the labelled texts of `path`.
        unlabelled: a file of unlabelled training texts, besides the rows of `path` whose label is empty.
        text, second, label, classes, regression, drop_empty, soft_label, multi_label, label_separator: see `Columns`.
        separator: between the fields; None: a tab in files that end in .tsv, else a comma.
        quotes: fields may be enclosed in double quotes; False: a quote is an ordinary character, as in GLUE's files.
        encoding: of all files; None: as the byte order mark says, else UTF-8.

    Raises:
        UserError: a file cannot be read or parsed, or what `table_data` refuses.
    """
    columns = Columns(
        text, label, second, None, classes, regression, drop_empty, soft_label, multi_label, label_separator
    )
    files = {"train": path, "val": val, "test": test, "unlabelled": unlabelled}
    tables = _tables(lambda file: read_csv(file, separator, quotes, encoding), files)
    return table_data(Path(path).stem, columns, tables, test_fraction)


def jsonl(
    path: Given,
    text: str = "text",
    label: str | None = "label",
    second: str | None = None,
    words: str | None = None,
    test: Given | None = None,
    val: Given | None = None,
    unlabelled: Given | None = None,
    classes: Sequence[Any] | None = None,
    regression: bool = False,
    test_fraction: float = 0.2,
    drop_empty: bool = False,
    encoding: str | None = None,
    soft_label: SoftLabel | None = None,
    multi_label: bool = False,
) -> RawData:
    """Texts, pairs of texts or lists of words from a file with one JSON object per line.

    Args:
        path, test, val: the files; without `test` the test split is `test_fraction` of the labelled texts of `path`.
        unlabelled: a file of unlabelled training texts, besides the rows of `path` whose label is empty.
        text, second, words, label, classes, regression, drop_empty, soft_label, multi_label: see `Columns`.
        encoding: of all files; None: as the byte order mark says, else UTF-8.

    Raises:
        UserError: a file cannot be read, a line is not a JSON object, or what `table_data` refuses.
    """
    columns = Columns(text, label, second, words, classes, regression, drop_empty, soft_label, multi_label)
    files = {"train": path, "val": val, "test": test, "unlabelled": unlabelled}
    tables = _tables(lambda file: read_jsonl(file, encoding), files)
    return table_data(Path(path).stem, columns, tables, test_fraction)


def _tables(read: Callable[[Path], Table], files: Mapping[str, Given | None]) -> dict[str, Table]:
    return {part: read(Path(file)) for part, file in files.items() if file is not None}


def read_csv(path: Path, separator: str | None = None, quotes: bool = True, encoding: str | None = None) -> Table:
    """The rows of a CSV or TSV file with a header; see `text_csv`."""
    notes = list[str]()
    rows = dict(csv_rows(path, separator, quotes, encoding, notes))  # by line
    header = rows.pop(next(iter(rows)))
    columns = dict(zip(header, zip(*rows.values(), strict=True), strict=True))
    return Table(f"'{path}'", columns, list(rows), notes=tuple(notes))


def csv_rows(
    path: Path, separator: str | None, quotes: bool, encoding: str | None, notes: list[str]
) -> Iterator[tuple[int, list[str]]]:
    """The header of a CSV or TSV file, then its rows, each with the line at which it begins.

    Args:
        separator, quotes, encoding: see `text_csv`.
        notes: to which remarks on how the file was read are added.
    """
    separator = separator or ("\t" if path.suffix.lower() == ".tsv" else ",")
    separator = "\t" if separator == r"\t" else separator
    if len(separator) != 1 or separator in "\r\n":
        raise UserError(f"data.source.separator={separator!r} must be a single character, and not the end of a line.")
    csv.field_size_limit(LONGEST_FIELD)
    line, found = 1, 0
    header: list[str] = []
    try:
        with opened(path, encoding, "") as (file, said):
            notes += said
            reader = csv.reader(
                file, delimiter=separator, quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE, strict=True
            )
            for row in reader:
                if len(row) > 1 or (row and not row[0].isspace()):  # not a blank line
                    if not header:
                        header = row
                        _refuse_header(path, header)
                    elif len(row) != len(header):
                        raise UserError(
                            f"'{path}', line {line}: {len(row)} fields, but the header has {len(header)}. Enclose a "
                            f"text that contains {separator!r} in quotes, or set data.source.separator."
                        )
                    found += 1
                    yield line, row
                line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"'{path}', line {line}: {error}. Double a quote within quotes; if quotes are ordinary characters, set "
            "data.source.quotes=false."
        ) from error
    if found < 2:
        raise UserError(f"'{path}' is empty: it must have a header and rows.")


def _refuse_header(path: Path, header: list[str]) -> None:
    """Refuse a header with a repeated name, or one that looks as if another separator were meant."""
    if len(set(header)) != len(header):
        raise UserError(f"'{path}' has two columns of the same name: {', '.join(header)}.")
    other = max(SEPARATORS, key=header[0].count)
    if len(header) == 1 and other in header[0]:
        raise UserError(
            f"'{path}' has a single column, {header[0]!r}. If {other!r} separates the fields, set "
            f'"data.source.separator={SEPARATORS[other]}"'
        )


def read_jsonl(path: Path, encoding: str | None = None) -> Table:
    """The objects of a JSON Lines file; see `jsonl`."""
    notes = list[str]()
    rows = dict(json_rows(path, encoding, notes))  # by line
    names = dict.fromkeys(name for row in rows.values() for name in row)
    return Table(
        f"'{path}'",
        {name: [row.get(name) for row in rows.values()] for name in names},
        list(rows),
        notes=tuple(notes),
    )


def json_rows(
    path: Path, encoding: str | None, notes: list[str], setting: str = ENCODING
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON Lines file, or of a list in a JSON file, each with its line, or its number in the list.

    Args:
        notes: to which remarks on how the file was read are added.
        setting: what the user set `encoding` as, for messages.
    """
    halves: list[int] = []
    empty = True
    with opened(path, encoding, "\n", setting) as (file, said):
        notes += said
        for number, line in enumerate(_listed(file, path), 1):
            if line.strip():
                row, halved = _json_object(line, f"'{path}', line {number}")
                halves += [number] if halved else []
                empty = False
                yield number, row
    if empty:
        raise UserError(f"'{path}' is empty: it must have a JSON object on each line.")
    if halves:
        notes.append(
            f"'{path}': {len(halves):,} lines with half of a surrogate pair, read as U+FFFD; the first is {halves[0]}"
        )


def _listed(file: IO[str], path: Path) -> Iterable[str]:
    """The lines of a file; of one that is a JSON list, its items."""
    first = next((line for line in file if line.strip()), "")
    file.seek(0)
    if not first.lstrip().startswith("["):
        return file
    try:
        return [json.dumps(item, ensure_ascii=False) for item in json.load(file)]
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is not valid JSON ({error}).") from error


def _json_object(line: str, where: str) -> tuple[dict[str, Any], bool]:
    """The object, and whether it had halves of surrogate pairs, which are replaced: they are not Unicode text."""
    try:
        row = json.loads(line, object_pairs_hook=_distinct_keys)
        halved = "\\u" in line and HALF.search(plain := json.dumps(row, ensure_ascii=False)) is not None
        if halved:
            row = json.loads(HALF.sub(REPLACEMENT, plain))
    except (ValueError, RecursionError) as error:
        cut = "" if line.endswith("\n") else " The line has no end: the file may have been cut off there."
        raise UserError(f"{where}: not valid JSON ({error}).{cut}") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: it must be a JSON object, not {line.strip()[:60]!r}.")
    return row, halved


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(row := dict(pairs)) != len(pairs):
        raise ValueError(f"a key occurs twice: {', '.join(key for key, _ in pairs)}")
    return row


@contextmanager
def opened(
    path: Path, encoding: str | None, newline: str, setting: str = ENCODING
) -> Iterator[tuple[IO[str], tuple[str, ...]]]:
    """The file as text, and what is to be said of its encoding."""
    try:
        with path.open("rb") as file:
            start = file.read(1000)
        mark = next((name for bytes_, name in MARKS.items() if start.startswith(bytes_)), None)
        if encoding is None and mark is None and b"\0" in start:
            order = "le" if start[1:2] == b"\0" else "be"
            raise UserError(f"'{path}' is not UTF-8 text, it has NUL bytes. Try {setting}=utf-16-{order}")
        used = encoding or mark or "utf-8"
        said = mark is not None and encoding is None and mark != "utf-8-sig"
        with path.open(encoding="utf-8-sig" if used.lower() in ("utf-8", "utf8") else used, newline=newline) as text:
            yield text, (f"'{path}' is read as {used.upper()}, as its byte order mark says",) if said else ()
    except LookupError as error:
        known = did_you_mean(str(encoding), {*aliases.aliases, *aliases.aliases.values()})
        raise UserError(f"{setting}={encoding}: there is no such encoding.{known}") from error
    except UnicodeError as error:
        raise UserError(f"'{path}' cannot be read: {_not_in_encoding(path, encoding, error, setting)}") from error
    except FileNotFoundError as error:
        near = did_you_mean_beside(path, Path.is_file) or f" Nor is there any in {path.parent.absolute()}."
        raise UserError(f"'{path}' cannot be read: there is no such file.{near}") from error
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error}.") from error


def _not_in_encoding(path: Path, encoding: str | None, error: UnicodeError, setting: str) -> str:
    if encoding is not None:
        return f"{error}. Set {setting} to another one than {encoding}, or to null for UTF-8."
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            line.decode()
        except UnicodeDecodeError as wrong:
            around = line[max(0, wrong.start - 20) : wrong.start + 20].decode("cp1252", "replace")
            return (
                f"line {number} is not UTF-8. As cp1252 (Western European Windows) it reads {around!r}: if that is "
                f"right set {setting}=cp1252, else the encoding that the file was written in."
            )
    return f"{error}."
