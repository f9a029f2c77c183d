"""Documents of plain text: .txt files, a folder of them, or a column of a JSON Lines or CSV file."""

from pathlib import Path

from distillery.core.errors import UserError
from distillery.data.raw_data import RawData
from distillery.data.sources.table import Columns, Table
from distillery.data.sources.table_splits import table_data
from distillery.data.sources.text_files import opened, read_csv, read_jsonl

Given = str | Path


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
        UserError: a file cannot be read, there are too few documents to split, or what `table_data` refuses.
    """
    files = {"train": path, "val": val, "test": test}
    tables = {part: _read(Path(file), text, separator, encoding) for part, file in files.items() if file is not None}
    if test is None and len(tables["train"]) < 2:
        raise UserError(
            f"'{path}' is one document, and whole documents are held out for the test. Say what stands between its "
            "documents (data.source.separator), name a folder with several files, or a file data.source.test."
        )
    return table_data(Path(path).stem, Columns(text, label=None, drop_empty=True), tables, test_fraction)


def _read(path: Path, text: str, separator: str | None, encoding: str | None) -> Table:
    if (kind := path.suffix.lower()) in (".jsonl", ".json"):
        return read_jsonl(path, encoding)
    if kind in (".csv", ".tsv"):
        return read_csv(path, encoding=encoding)
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"'{path}' has no file *.txt. Name a JSON Lines or CSV file itself: data.source.path=….jsonl")
    documents: list[str] = []
    notes: dict[str, None] = {}
    for file in files:
        with opened(file, encoding, "") as (lines, said):
            content = lines.read()
        documents += content.split(separator) if separator else [content]
        notes |= dict.fromkeys(said)
    return Table(f"'{path}'", {text: documents}, range(1, len(documents) + 1), "document", tuple(notes))
