"""Texts in a file instead of in memory, where they are large."""

import mmap
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from tempfile import TemporaryFile
from typing import overload

import pyarrow as pa

from distillery.core.paths import scratch_folder

IN_MEMORY = 32_000_000  # characters up to which texts stay in memory
BATCH = 1_000_000  # characters of those that are written together


def stored(texts: Iterable[str]) -> Sequence[str]:
    """The texts as a sequence: a list if they are short, else memory-mapped from a file that ends with the process."""
    rest, held, size = iter(texts), list[str](), 0
    for text in rest:
        held.append(text)
        size += len(text)
        if size > IN_MEMORY:
            return StoredTexts(chain(_emptied(held), rest))
    return held


def _emptied(texts: list[str]) -> Iterator[str]:
    texts.reverse()
    while texts:
        yield texts.pop()


class StoredTexts(Sequence[str]):
    """Texts in a memory-mapped Arrow file without a name, which goes with the process."""

    def __init__(self, texts: Iterable[str]) -> None:
        schema = pa.schema([("text", pa.large_string())])
        with TemporaryFile(dir=scratch_folder()) as file:
            with pa.ipc.new_file(file, schema) as writer:
                for some in _batches(texts):
                    writer.write_batch(pa.record_batch([pa.array(some, pa.large_string())], schema=schema))
            file.flush()
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._texts = pa.ipc.open_file(pa.py_buffer(mapped)).read_all().column("text")

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        text: str = self._texts[place].as_py()
        return text


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    some, size = list[str](), 0
    for text in texts:
        some.append(text)
        size += len(text)
        if size > BATCH:
            yield some
            some, size = [], 0
    yield some
