"""Files with a teacher's outputs: NumPy's .npz, and Parquet."""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distillery.core.errors import UserError, did_you_mean_beside
from distillery.data.soft_labels import refuse_no_distribution

Array = np.ndarray[Any, Any]
SUFFIXES = (".npz", ".parquet")
PROBABILITIES, LOGITS = VALUES = ("probabilities", "logits")
KEYS = ("index", "path")
KNOWN = (*VALUES, *KEYS, "split", "classes")


class TargetFile(NamedTuple):
    """The arrays of a file: `values` are float32 [M, C], those of `keys` and `splits` [M]."""

    path: Path
    kind: str  # one of VALUES
    values: Array
    keys: Mapping[str, Array]  # at most one of KEYS
    splits: Array | None
    classes: tuple[str, ...] | None
    unread: tuple[str, ...]  # names of arrays that nothing reads


def read_targets(path: Path, setting: str) -> TargetFile:
    """The arrays of an .npz or .parquet file.

    Args:
        setting: that names the file, for messages.

    Raises:
        UserError: the file cannot be read, lacks arrays or has contradicting ones, or rows are no distributions.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{setting}={path}: it must be a file of {' or '.join(SUFFIXES)}. See numpy.savez.")
    try:
        arrays, classes = _npz(path) if path.suffix == ".npz" else _parquet(path)
    except FileNotFoundError as error:
        hint = did_you_mean_beside(path, lambda each: each.suffix in SUFFIXES)
        raise UserError(f"{setting}={path}: there is no such file.{hint}") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, pa.ArrowException) as error:
        hint = " Save texts as arrays of strings: numpy.array(list)." if "pickle" in str(error) else ""
        raise UserError(f"{setting}={path} cannot be read: {error}.{hint}") from error
    kinds = [kind for kind in VALUES if kind in arrays]
    if len(kinds) != 1:
        found = f"both {' and '.join(VALUES)}" if kinds else f"the arrays {', '.join(arrays) or 'none'}"
        raise UserError(f"{setting}={path} has {found}: it must have one array called {' or '.join(VALUES)}.")
    kind, keys = kinds[0], {key: arrays[key] for key in KEYS if key in arrays}
    values = arrays[kind]
    if len(keys) > 1:
        raise UserError(f"{setting}={path} has both {' and '.join(keys)}: leave one out.")
    if values.ndim == 1 and kind == LOGITS and values.dtype.kind == "f":  # of a regression
        values = values[:, None]
    if values.ndim != 2 or values.dtype.kind not in "fiu" or not values.size:
        hard = " Class numbers are hard labels: they belong in the data." if values.ndim == 1 else ""
        raise UserError(f"'{path}': {kind} are {values.dtype} {list(values.shape)}, and not numbers [N, C].{hard}")
    values = values.astype(np.float32)
    for name in (*keys, "split"):
        if name in arrays and arrays[name].shape != (len(values),):
            raise UserError(
                f"'{path}': {kind} has {len(values):,} rows, and {name} the shape {list(arrays[name].shape)}."
            )
    if "index" in keys and keys["index"].dtype.kind not in "iu":
        raise UserError(f"'{path}': index is {keys['index'].dtype}, and not whole numbers.")
    where = _where(path, keys)
    if kind == LOGITS:
        if len(wrong := np.flatnonzero(~np.isfinite(values).all(1))):
            raise UserError(f"{where(wrong[0])}: the logits have a number that is not finite.")
    else:
        refuse_no_distribution(values, where, "If they are logits, call the array `logits`.")
    if "classes" in arrays:
        classes = tuple(str(each) for each in arrays["classes"].tolist())
    if classes is not None and len(set(classes)) != values.shape[1]:
        raise UserError(f"'{path}': {kind} has {values.shape[1]} columns, and classes {len(set(classes))} names.")
    unread = tuple(name for name in arrays if name not in KNOWN)
    return TargetFile(path, kind, values, keys, arrays.get("split"), classes, unread)


def _where(path: Path, keys: Mapping[str, Array]) -> Callable[[int], str]:
    def where(row: int) -> str:
        return f"'{path}', row {row}" + "".join(f" ({key} {values[row]})" for key, values in keys.items())

    return where


def _npz(path: Path) -> tuple[dict[str, Array], None]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}, None


def _parquet(path: Path) -> tuple[dict[str, Array], tuple[str, ...] | None]:
    """The columns; of a column of mappings the names, too."""
    table, arrays, classes = pq.read_table(path), dict[str, Array](), None
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if name in VALUES and pa.types.is_struct(column.type):
            classes = tuple(field.name for field in column.type)
            arrays[name] = np.stack([column.field(i).to_numpy(zero_copy_only=False) for i in range(len(classes))], 1)
        elif name in VALUES and len(column) and not pa.types.is_primitive(column.type):
            arrays[name] = np.stack(column.to_numpy(zero_copy_only=False))
        elif name in KNOWN and pa.types.is_string(column.type):
            arrays[name] = np.array(column.to_pylist(), dtype=str)
        else:
            arrays[name] = column.to_numpy(zero_copy_only=False) if name in KNOWN else np.zeros(0)
    return arrays, classes
