"""Text data sets from the Hugging Face hub, by name."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import count

from datasets import Dataset

from distillery.core.errors import UserError
from distillery.data.raw_data import RawData
from distillery.data.sources.documents import Document, document_data
from distillery.data.sources.hub import labels_of, load_splits
from distillery.data.sources.messages import conversations_of
from distillery.data.sources.table import Columns, SoftLabel, Table, read_texts, refuse_empty
from distillery.data.sources.table_splits import table_data

ROWS = 100  # of documents that are read together


def hf_dataset(
    path: str,
    name: str | None = None,
    text: str = "sentence",
    second: str | None = None,
    words: str | None = None,
    label: str | None = "label",
    train: str = "train",
    val: str | None = "validation",
    test: str | None = "test",
    regression: bool = False,
    drop_empty: bool = False,
    drop_duplicates: bool = True,
    revision: str | None = None,
    data_files: Mapping[str, str] | None = None,
    soft_label: SoftLabel | None = None,
    conversations: bool = False,
    multi_label: bool = False,
    label_separator: str = "|",
) -> RawData:
    """Texts, pairs of texts, lists of words or conversations, loaded by `datasets.load_dataset`.

    If the labels of the test split are hidden, or `test` is None, the validation split becomes the test split, and
    validation texts are cut from train: nothing may be selected on the texts that give the score. The remarks say so.
    Rows of train without a label are unlabelled texts; those of val and test are left out and counted. The classes are
    those that the data set declares, else the labels of the training texts, sorted.

    Args:
        path, name, revision, data_files: arguments of `load_dataset`: a data set of the hub or a folder, its
            configuration, its commit; or a file type ("csv", "json", "parquet") and the files of each split.
        text, second, words, label, regression, drop_empty, soft_label, multi_label, label_separator: see `Columns`.
        train, val, test: the names of the splits; part of a split is written as "train[:90%]".
        drop_duplicates: leave out repeated texts; False: only count them, for scores that are compared with those
            of a paper that kept them.
        conversations: the rows are conversations, as `messages` reads them; columns of texts and labels are not read.

    Raises:
        UserError: the data set is unavailable or has no such configuration or split, or what `table_data` refuses.
    """
    if conversations:
        label = None
        if not drop_duplicates:
            raise UserError("data.source.drop_duplicates=false: repeated conversations are always left out.")
    columns = Columns(
        text, label, second, words, None, regression, drop_empty, soft_label, multi_label, label_separator
    )
    called = path if name is None else f"{path}/{name}"
    remarks: list[str] = []
    names = {"train": train, "val": val, "test": test}
    sets = load_splits(called, path, names, label, remarks, name=name, revision=revision, data_files=data_files)
    if conversations:
        parts = {part: conversations_of(data, where) for part, (data, where) in sets.items()}
        return document_data(called, parts, 0.0, remarks, "conversations", conversations=True)
    if label is None and second is None and words is None and soft_label is None and drop_duplicates:
        texts = {part: _documents(data, where, text, drop_empty) for part, (data, where) in sets.items()}
        return document_data(called, texts, 0.0, remarks)
    tables: dict[str, Table] = {}
    for part, (data, where) in sets.items():
        tables[part], classes = _table(data, where, label, keep=part == "train")
        if classes is not None and not regression:
            columns = replace(columns, classes=classes)
        if missing := len(data) - len(tables[part].lines):
            remarks.append(f"{part}: {missing:,} rows without a label left out")
    return table_data(called, columns, tables, drop_duplicates=drop_duplicates, remarks=remarks)


def _documents(data: Dataset, where: str, text: str, drop_empty: bool) -> Iterator[Document]:
    """The texts of the rows, a few of which are in memory at a time."""
    Table(where, dict.fromkeys(data.column_names, ()), ()).column("text", text)  # refused if there is none
    empty: list[int] = []
    for start, some in zip(count(0, ROWS), data.select_columns([text]).iter(ROWS), strict=False):
        table = Table(where, some, range(start, start + len(some[text])), "row")
        texts, without = read_texts(table, text)
        empty += (start + row for row in without)
        yield from (Document(each, "" if each else "rows with an empty text") for each in texts["first"])
    if not drop_empty:
        refuse_empty(Table(where, {}, range(len(data)), "row"), empty)


def _table(data: Dataset, where: str, label: str | None, keep: bool) -> tuple[Table, list[str] | None]:
    """The labelled rows of `data`, or all (`keep`), and the classes that it declares, if any: its labels are names."""
    rows = list(range(len(data)))
    if label is None or label not in data.column_names:
        return Table(where, {name: data[name] for name in data.column_names}, rows, "row"), None
    labels, classes = labels_of(data, label)
    rows = [row for row in rows if keep or labels[row] is not None]
    data = data.select(rows)
    columns = {name: data[name] for name in data.column_names}
    return Table(where, columns | {label: [labels[row] for row in rows]}, rows, "row"), classes
