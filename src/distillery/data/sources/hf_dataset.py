"""Text data sets from the Hugging Face hub, by name."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import datasets
from datasets import ClassLabel, Dataset
from datasets.exceptions import DatasetsError

from distillery.core.errors import UserError
from distillery.data.raw_data import RawData
from distillery.data.sources.table import Columns, Table
from distillery.data.sources.table_splits import table_data

HIDDEN = -1  # the label of a sample whose label is withheld, as in the test splits of GLUE
# pandas takes words such as NA, null and none for missing values. In a CSV file only an empty field is one.
CSV_OPTIONS = {"keep_default_na": False, "na_values": [""]}


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
) -> RawData:
    """Texts, pairs of texts or lists of words, loaded by `datasets.load_dataset`.

    If the labels of the test split are hidden, or `test` is None, the validation split becomes the test split, and
    validation texts are cut from train: nothing may be selected on the texts that give the score. The remarks say so.
    Rows without a label elsewhere are left out and counted. The classes are those that the data set declares, else the
    labels of the training texts, sorted.

    Args:
        path, name, revision, data_files: arguments of `load_dataset`: a data set of the hub or a folder, its
            configuration, its commit; or a file type ("csv", "json", "parquet") and the files of each split.
        text, second, words, label, regression, drop_empty: see `Columns`.
        train, val, test: the names of the splits; part of a split is written as "train[:90%]".
        drop_duplicates: leave out repeated texts; False: only count them, for scores that are compared with those
            of a paper that kept them.

    Raises:
        UserError: the data set is unavailable or has no such configuration or split, or what `table_data` refuses.
    """
    columns = Columns(text, label, second, words, None, regression, drop_empty)
    called = path if name is None else f"{path}/{name}"
    splits = {part: split for part, split in (("train", train), ("val", val), ("test", test)) if split is not None}
    files = None if data_files is None else dict(data_files)
    loaded = _load(called, path, split=list(splits.values()), name=name, revision=revision, data_files=files)
    sets = dict(zip(splits, loaded, strict=True))
    remarks: list[str] = []
    if "test" not in sets or _hidden(sets["test"], label):
        if "val" not in sets:
            raise UserError(
                f"'{called}' has no labelled texts to test on: set data.source.test, for instance to "
                '"train[90%:]", and data.source.train to "train[:90%]".'
            )
        why = "the labels of its test split are hidden" if "test" in sets else "data.source.test is null"
        remarks.append(f"{why}: its split {splits['val']} is the test split, validation is cut from train")
        sets["test"], splits["test"] = sets.pop("val"), splits.pop("val")
    tables: dict[str, Table] = {}
    for part, data in sets.items():
        tables[part], names = _table(data, f"'{called}', split {splits[part]}", label)
        if names is not None and not regression:
            columns = replace(columns, classes=names)
        if missing := len(data) - len(tables[part].lines):
            remarks.append(f"{part}: {missing:,} rows without a label left out")
    return table_data(called, columns, tables, drop_duplicates=drop_duplicates, remarks=remarks)


def _load(called: str, path: str, **options: Any) -> list[Dataset]:
    try:
        return datasets.load_dataset(path, **options, **(CSV_OPTIONS if path == "csv" else {}))
    except ConnectionError as error:
        arguments = ", ".join(repr(value) for value in (path, options["name"]) if value is not None)
        raise UserError(
            f"'{called}' is not in the cache '{datasets.config.HF_DATASETS_CACHE}', and the hub cannot be reached: "
            f"{error}. Run load_dataset({arguments}) once on a machine with a network, copy its cache here, and set "
            "HF_HOME to the folder that contains it (as `datasets`). HF_HUB_OFFLINE=1 reads the cache without asking "
            "the hub first."
        ) from error
    except (OSError, ValueError, DatasetsError) as error:
        raise UserError(
            f"'{called}' cannot be loaded: {error}. See data.source.path, name, train, val and test; val=null cuts "
            "the validation texts from train, test=null tests on val."
        ) from error


def _hidden(data: Dataset, label: str | None) -> bool:
    """Whether the split has a column of labels, all of them withheld."""
    if label is None or label not in data.column_names:
        return False
    return len(data) > 0 and all(value is None or value == HIDDEN for value in data[label])


def _table(data: Dataset, where: str, label: str | None) -> tuple[Table, list[str] | None]:
    """The labelled rows of `data`, and the classes that it declares, if any; their labels become names."""
    rows = list(range(len(data)))
    if label is None or label not in data.column_names:
        return Table(where, {name: data[name] for name in data.column_names}, rows, "row"), None
    labels, names = list(data[label]), None
    declared = getattr(data.features[label], "feature", data.features[label])  # the items of a list
    if isinstance(declared, ClassLabel):
        names = list(declared.names)
        labels = [_named(value, names) for value in labels]
    rows = [row for row in rows if labels[row] is not None]
    data = data.select(rows)
    columns = {name: data[name] for name in data.column_names}
    return Table(where, columns | {label: [labels[row] for row in rows]}, rows, "row"), names


def _named(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [names[item] for item in value]
    return None if value is None or value == HIDDEN else names[value]
