"""The rows of test sets, from files and from data sets of the Hugging Face hub."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetsError

from distillery.core.errors import UserError, did_you_mean_beside
from distillery.core.offline import read_cache_if_offline, why_offline
from distillery.data.sources.text_files import json_rows

JSON = (".jsonl", ".json", ".ndjson")
READ = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".txt": "text"}  # by `datasets`


def rows_of_test_sets(
    sources: Sequence[str], split: str, encoding: str | None, notes: list[str]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row of the test sets with a name for it: `test.jsonl, line 3`.

    Args:
        sources: files (JSON Lines, JSON, CSV, TSV, Parquet, or text with a row a line), or data sets as `load_dataset`
            takes them: a name on the hub or a folder, with `name:configuration` for one of several.
        split: of data sets.
        notes: to which remarks on how files were read are added.

    Raises:
        UserError: a test set cannot be read.
    """
    for source in sources:
        path = Path(source)
        if path.suffix in JSON:
            for line, row in json_rows(path, encoding, notes, "encoding"):
                yield f"{path.name}, line {line}", row
        else:
            for number, row in enumerate(_loaded(source, split)):
                yield f"{path.name}, row {number}", row


def _loaded(source: str, split: str) -> Any:
    path, _, name = source.partition(":")
    kind = READ.get(Path(source).suffix)
    try:
        if kind is not None:
            options = {"sep": "\t"} if source.endswith(".tsv") else {}
            return datasets.load_dataset(kind, data_files=source, split="train", **options)
        if not Path(path).exists():
            read_cache_if_offline()
        return datasets.load_dataset(path, name or None, split=split)
    except ConnectionError as error:
        raise UserError(f"against={source}: {why_offline()}, or name a file.") from error
    except (OSError, ValueError, DatasetsError) as error:
        near = did_you_mean_beside(Path(source), Path.is_file) if not Path(path).exists() else ""
        raise UserError(
            f"against={source} cannot be loaded: {str(error).rstrip('.')}. It must be a file, or a data set of the hub "
            f"with a split {split!r} (against_split=…; against=<data set>:<configuration> for one of several).{near}"
        ) from error
