"""JSON Lines as a Parquet file, whatever the keys of the rows."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 1000  # that are converted at a time, and those of a row group


def write_parquet(rows: Path, out: Path) -> list[str]:
    """Write the rows of a JSON Lines file as Parquet; keys that a row lacks are null.

    A column whose values have no common type, or one that Parquet lacks (an object without keys), becomes JSON text.

    Returns: the names of these columns.
    """
    schema, as_text = _schema(rows)
    with pq.ParquetWriter(out, schema) as writer:
        for chunk in _chunks(rows):
            columns = (
                pa.array([_cell(row, key, as_text) for row in chunk], schema.field(key).type) for key in schema.names
            )
            writer.write_table(pa.Table.from_arrays(list(columns), schema=schema))
    return sorted(as_text)


def _schema(rows: Path) -> tuple[pa.Schema, set[str]]:
    """A type for each key of the rows, and the keys whose values are written as text."""
    types: dict[str, pa.DataType] = {}
    as_text = set[str]()
    for chunk in _chunks(rows):
        for name in dict.fromkeys(key for row in chunk for key in row):
            if name in as_text:
                continue
            try:
                found = pa.array([row.get(name) for row in chunk]).type
                types[name] = _common(types.get(name, pa.null()), found)
            except (pa.ArrowException, OverflowError):
                types[name] = pa.string()
                as_text.add(name)
    for name, kind in types.items():
        if _has_empty_struct(kind):
            types[name] = pa.string()
            as_text.add(name)
    return pa.schema(list(types.items())), as_text


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    schemas = [pa.schema([("", kind)]) for kind in (one, other)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def _has_empty_struct(kind: pa.DataType) -> bool:
    children = [kind.field(at).type for at in range(kind.num_fields)]
    return (pa.types.is_struct(kind) and not children) or any(map(_has_empty_struct, children))


def _cell(row: dict[str, Any], name: str, as_text: set[str]) -> Any:
    value = row.get(name)
    return json.dumps(value, ensure_ascii=False) if name in as_text and value is not None else value


def _chunks(path: Path) -> Iterator[list[dict[str, Any]]]:
    with path.open(encoding="utf-8", newline="\n") as file:
        while chunk := [json.loads(line) for line in islice(file, ROWS)]:
            yield chunk
