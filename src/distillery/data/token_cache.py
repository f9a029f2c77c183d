"""Tokenised texts in files of the cache folder: for later runs, for the other processes of a run, and out of memory."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
import tokenizers
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from distillery.core.files import atomic_write
from distillery.core.paths import cache_folder
from distillery.data.tokenizers import written

SETTINGS = ("model_input_names", "truncation_side", "special_tokens_map", "add_prefix_space")
CHECKSUM = "sha256"
DTYPES = {"I32": torch.int32, "U8": torch.uint8}  # by their names in safetensors files
ALIGNMENT = 8  # bytes, so that columns can be mapped
AT_ONCE = 1 << 20  # bytes

Columns = Mapping[str, NDArray[Any]]


def tokenizer_key(tokenizer: Any, limit: int | None, *content: bytes) -> str | None:
    """What tokens depend on: the tokenizer, `limit` tokens a text, and the texts; None: not known.

    A tokenizer written in Python does not say all that it depends on.
    """
    if not tokenizer.is_fast:
        return None
    settings = [getattr(tokenizer, name, None) for name in SETTINGS]
    versions = (type(tokenizer).__name__, tokenizers.__version__, transformers.__version__)
    said = f"{written(tokenizer, '')} {settings} {versions} {limit}"
    return hashlib.sha256(said.encode() + b"".join(hashlib.sha256(part).digest() for part in content)).hexdigest()


def stored_tokens(key: str | None, parts: Callable[[], Iterable[Columns]]) -> dict[str, Tensor]:
    """The concatenated columns of `parts`, or what an earlier run has kept of them under `key`.

    They lie in a file that is mapped into memory: what is not read takes none. Where the folder cannot be written, or
    without a key, they are in memory.

    Args:
        parts: makes the columns, some texts at a time. Each part has the same columns, int32 or uint8 [any].
    """
    if key is not None:
        file = cache_folder() / "tokens" / f"{key}.safetensors"
        if (found := _load(file)) is not None:
            return found
        with suppress(OSError):
            _save(file, parts())
            if (found := _load(file)) is not None:
                return found
    columns: dict[str, list[NDArray[Any]]] = {}
    for part in parts():
        for name, values in part.items():
            columns.setdefault(name, []).append(values)
    return {name: torch.from_numpy(np.concatenate(values)) for name, values in columns.items()}


def _save(file: Path, parts: Iterable[Columns]) -> None:
    """Write a safetensors file, column after column, from parts that have some of each."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as opened:
        files: dict[str, IO[bytes]] = {}
        sums: dict[str, Any] = {}
        sizes: dict[str, int] = {}  # bytes of an item
        for part in parts:
            for name, values in part.items():
                if name not in files:
                    files[name], sums[name] = opened.enter_context(TemporaryFile(dir=file.parent)), hashlib.sha256()
                    sizes[name] = values.itemsize
                content = values.tobytes()
                files[name].write(content)
                sums[name].update(content)
        header: dict[str, Any] = {"__metadata__": {CHECKSUM: _checksum(sums)}}
        end = 0
        codes = {dtype.itemsize: code for code, dtype in DTYPES.items()}
        for name in sorted(files, key=lambda name: -sizes[name]):  # so that each is aligned
            start, end = end, end + files[name].tell()
            shape = [(end - start) // sizes[name]]
            header[name] = {"dtype": codes[sizes[name]], "shape": shape, "data_offsets": [start, end]}
        said = json.dumps(header).encode()
        said += b" " * (-len(said) % ALIGNMENT)
        with atomic_write(file) as unfinished, unfinished.open("wb") as whole:
            whole.write(len(said).to_bytes(8, "little") + said)
            for name in [name for name in header if name in files]:
                files[name].seek(0)
                shutil.copyfileobj(files[name], whole, AT_ONCE)


def _load(file: Path) -> dict[str, Tensor] | None:
    """The columns of a file that `_save` has written; None if there is none, or a damaged one."""
    with suppress(OSError, ValueError, KeyError), file.open("rb") as opened:
        start = 8 + int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(min(start - 8, AT_ONCE)))
        stated = header.pop("__metadata__")[CHECKSUM]
        places = {name: [start + offset for offset in each["data_offsets"]] for name, each in header.items()}
        if stated != _checksum({name: _sum(opened, *place) for name, place in places.items()}):
            return None
        whole = torch.from_file(str(file), shared=False, size=os.fstat(opened.fileno()).st_size, dtype=torch.uint8)
        return {name: whole[slice(*places[name])].view(DTYPES[each["dtype"]]) for name, each in header.items()}
    return None


def _sum(file: IO[bytes], start: int, end: int) -> Any:
    """The hash of a part of a file, read without mapping it."""
    sha = hashlib.sha256()
    file.seek(start)
    for at in range(start, end, AT_ONCE):
        sha.update(file.read(min(AT_ONCE, end - at)))
    return sha


def _checksum(sums: Mapping[str, Any]) -> str:
    return hashlib.sha256("".join(f"{name} {sums[name].hexdigest()} " for name in sorted(sums)).encode()).hexdigest()
