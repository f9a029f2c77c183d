"""Data sets of the Hugging Face hub, and files that `datasets` reads: their splits and labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
from datasets import ClassLabel, Dataset
from datasets.exceptions import DatasetsError
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

from distillery.core.errors import UserError
from distillery.core.offline import read_cache_if_offline

HIDDEN = -1  # the label of a sample whose label is withheld, as in the test splits of GLUE
# pandas takes words such as NA, null and none for missing values. In a CSV file only an empty field is one.
CSV_OPTIONS = {"keep_default_na": False, "na_values": [""]}


def load_splits(
    called: str,
    path: str,
    splits: Mapping[str, str | None],
    label: str | None,
    remarks: list[str],
    data_files: Mapping[str, Any] | None,
    **options: Any,
) -> dict[str, tuple[Dataset, str]]:
    """The splits train, val and test, each with its name in messages.

    Without labels in the test split, or without a test split, the validation split takes its place.

    Args:
        called: the data set's name in messages.
        path, data_files, options: arguments of `load_dataset`.
        splits: what the data set calls its splits; None: it has none.
        label: the column of the labels, if there is one.
        remarks: to which this adds.

    Raises:
        UserError: the data set cannot be loaded, or has nothing to test on.
    """
    names = {part: name for part, name in splits.items() if name is not None}
    if data_files is None:
        loaded = _load(called, path, split=list(names.values()), **options)
    else:  # each with its own files alone: train may lack the column of labels that test has
        loaded = [
            _load(called, path, split=split, data_files=_files_of(data_files, split), **options)
            for split in names.values()
        ]
    sets = dict(zip(names, loaded, strict=True))
    if "test" not in sets or _hidden(sets["test"], label):
        if "val" not in sets:
            raise UserError(
                f"'{called}' has no labelled samples to test on: set data.source.test, for instance to "
                '"train[90%:]", and data.source.train to "train[:90%]".'
            )
        why = "the labels of its test split are hidden" if "test" in sets else "data.source.test is null"
        remarks.append(f"{why}: its split {names['val']} is the test split, validation is cut from train")
        sets["test"], names["test"] = sets.pop("val"), names.pop("val")
    return {part: (data, f"'{called}', split {names[part]}") for part, data in sets.items()}


def labels_of(data: Dataset, label: str) -> tuple[list[Any], list[str] | None]:
    """The label of each row, None where it is missing or withheld, and the classes that are declared, if any.

    Labels of declared classes are their names.
    """
    labels = list(data[label])
    declared = getattr(data.features[label], "feature", data.features[label])  # the items of a list
    if not isinstance(declared, ClassLabel):
        return labels, None
    names = list(declared.names)
    return [_named(value, names) for value in labels], names


def _files_of(data_files: Mapping[str, Any], split: str) -> dict[str, Any]:
    """The files of a split, which may be a part of one ("train[:90%]"); all of them if none is called so."""
    whole = split.partition("[")[0]
    return {key: files for key, files in data_files.items() if key == whole} or dict(data_files)


def _load(called: str, path: str, **options: Any) -> Any:
    """What `load_dataset` returns: the split, or a list of several."""
    if not datasets.config.HF_HUB_OFFLINE and not Path(path).exists() and path not in _PACKAGED_DATASETS_MODULES:
        read_cache_if_offline()
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE
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
        if "column names don't match" in str(error.__cause__):
            raise UserError(
                f"'{called}': the files of its splits have different columns. Name those of each split: "
                "data.source.path=parquet (csv, json) data.source.data_files={train: …, test: …}"
            ) from error
        reason = str(error).rstrip(".")
        cause = f" ({str(error.__cause__).strip().splitlines()[0]})" if str(error.__cause__ or "").strip() else ""
        raise UserError(
            f"'{called}' cannot be loaded: {reason}{cause}. See data.source.path, name, train, val and test; val=null "
            "cuts the validation samples from train, test=null tests on val."
        ) from error


def _hidden(data: Dataset, label: str | None) -> bool:
    """Whether the split has a column of labels, all of them withheld."""
    if label is None or label not in data.column_names:
        return False
    return len(data) > 0 and all(value is None or value == HIDDEN for value in data[label])


def _named(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [names[item] for item in value]
    return None if value is None or value == HIDDEN else names[value]
