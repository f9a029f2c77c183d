"""Documents of plain text: .txt files, a folder of them, or a column of a JSON Lines or CSV file."""

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import IO

from distillery.core.errors import UserError
from distillery.data.raw_data import RawData
from distillery.data.sources.documents import Document, document_data
from distillery.data.sources.table import Table
from distillery.data.sources.text_files import csv_rows, json_rows, opened

Given = str | Path
AT_ONCE = 1 << 20  # characters that are read together


def plain_text(
    path: Given,
    text: str = "text",
    separator: str | None = None,
    test: Given | None = None,
    val: Given | None = None,
    test_fraction: float = 0.1,
    encoding: str | None = None,
) -> RawData:
    """Whole documents without labels. No document is in two splits; empty and repeated ones are left out and counted.

    Args:
        path, test, val: a .txt file, a folder of such (at any depth), or a .jsonl, .csv or .tsv file with a document in
            each row. Without `test` the test split is `test_fraction` of the documents of `path`, always the same.
        text: the column or key of the documents.
        separator: what stands between the documents of a .txt file; None: a file is one document.
        encoding: of all files; None: as the byte order mark says, else UTF-8.

    Raises:
        UserError: a file cannot be read, there are too few documents to split, or a text that is none.
    """
    files = {"train": path, "val": val, "test": test}
    notes = list[str]()
    parts = {part: _read(Path(file), text, separator, encoding, notes) for part, file in files.items() if file}
    first = list(islice(parts["train"], 2))
    if test is None and len(first) < 2:
        raise UserError(
            f"'{path}' is one document, and whole documents are held out for the test. Say what stands between its "
            "documents (data.source.separator), name a folder with several files, or a file data.source.test."
        )
    return document_data(Path(path).stem, {**parts, "train": chain(first, parts["train"])}, test_fraction, notes)


def _read(path: Path, text: str, separator: str | None, encoding: str | None, notes: list[str]) -> Iterator[Document]:
    for document in _documents(path, text, separator, encoding, notes):
        yield Document(document, "" if document.strip() else "rows with an empty text")


def _documents(path: Path, text: str, separator: str | None, encoding: str | None, notes: list[str]) -> Iterator[str]:
    """The documents of a file or a folder, one after another."""
    if (kind := path.suffix.lower()) in (".jsonl", ".json"):
        names = dict[str, None]()
        for line, row in json_rows(path, encoding, notes):
            names |= dict.fromkeys(row)
            if not isinstance(row.get(text), str | None):
                raise UserError(f"'{path}', line {line}: column '{text}' is not text: {row[text]!r}.")
            yield row.get(text) or ""
        Table(f"'{path}'", dict.fromkeys(names, ()), ()).column("text", text)  # refused if it is in no row
        return
    if kind in (".csv", ".tsv"):
        rows = csv_rows(path, None, True, encoding, notes)
        _, header = next(rows)
        Table(f"'{path}'", dict.fromkeys(header, ()), ()).column("text", text)  # refused if there is none
        yield from (row[header.index(text)] for _, row in rows)
        return
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"'{path}' has no file *.txt. Name a JSON Lines or CSV file itself: data.source.path=….jsonl")
    for file in files:
        with opened(file, encoding, "") as (content, said):
            notes += (note for note in said if note not in notes)
            yield from _apart(content, separator)


def _apart(content: IO[str], separator: str | None) -> Iterator[str]:
    """What stands between the separators of a file; all of it without one."""
    rest = ""
    while block := content.read(AT_ONCE if separator else -1):
        *whole, rest = (rest + block).split(separator) if separator else [block]
        yield from whole
    yield rest
