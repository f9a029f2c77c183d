"""The pictures in a folder, as `os.scandir` finds them, and which of them are the same."""

import hashlib
import os
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillery.core.files import sha256_of
from distillery.data.decoding import EXTENSIONS
from distillery.data.file_memory import File, remembered

EDGE = 4096  # bytes


@dataclass(frozen=True)
class PictureFiles:
    """N pictures in a folder.

    Attributes:
        root: the folder.
        names: paths relative to it, [N] in one array: each worker process would copy a list.
        sizes: in bytes, [N].
        times: of the last change in nanoseconds, [N].
        others: the number of files that are no pictures, by suffix.
    """

    root: Path
    names: NDArray[np.bytes_]
    sizes: NDArray[np.int64]
    times: NDArray[np.int64]
    others: Counter[str]

    def __len__(self) -> int:
        return len(self.names)

    def path(self, position: int) -> Path:
        return self.root / os.fsdecode(self.names[position])

    def open(self, position: int) -> tuple[Path, str]:
        """What Pillow opens, and its name in messages."""
        path = self.path(position)
        return path, str(path)

    def files(self) -> list[File]:
        """All of them, with absolute paths."""
        root = os.fsencode(self.root.absolute())
        parts = zip(self.names.tolist(), self.sizes.tolist(), self.times.tolist(), strict=True)
        return [File(root + b"/" + name, size, time) for name, size, time in parts]

    def take(self, positions: Sequence[int]) -> "PictureFiles":
        """Only these pictures."""
        kept = list(positions)
        return replace(self, names=self.names[kept], sizes=self.sizes[kept], times=self.times[kept])

    def content(self) -> bytes:
        """Names and sizes, for the fingerprint."""
        lines = (name + b"\t%d" % size for name, size in zip(self.names.tolist(), self.sizes.tolist(), strict=True))
        return b"\n".join(lines)


def hidden(name: str) -> bool:
    """Whether a file or folder is one that programs leave: `._a.jpg`, `.ipynb_checkpoints`, `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


def find_pictures(root: Path, folders: Sequence[str]) -> tuple[PictureFiles, list[int]]:
    """The pictures in `folders` of `root` and below, sorted in each, links followed; and how many each folder has."""
    found: list[tuple[bytes, int, int]] = []
    counts: list[int] = []
    others: Counter[str] = Counter()
    for folder in folders:
        own = sorted(_walk(root / folder, os.fsencode(folder), others, frozenset()))
        found += own
        counts.append(len(own))
    names, sizes, times = zip(*found, strict=True) if found else ((), (), ())
    return PictureFiles(root, np.array(names), np.array(sizes), np.array(times), others), counts


def _walk(
    folder: Path, name: bytes, others: Counter[str], above: frozenset[tuple[int, int]]
) -> Iterator[tuple[bytes, int, int]]:
    """Name, size and time of each picture. `above`: the folders that lead here, as a link may lead back to one."""
    status = folder.stat()
    if (status.st_dev, status.st_ino) in above:
        return
    above |= {(status.st_dev, status.st_ino)}
    with os.scandir(folder) as entries:
        for entry in entries:
            suffix = Path(entry.name).suffix.lower()
            if hidden(entry.name):
                continue
            if entry.is_dir():
                yield from _walk(Path(entry.path), name + b"/" + os.fsencode(entry.name), others, above)
            elif suffix in EXTENSIONS:
                status = entry.stat()
                yield name + b"/" + os.fsencode(entry.name), status.st_size, status.st_mtime_ns
            else:
                others[suffix or entry.name] += 1


def content_keys(groups: Sequence[PictureFiles]) -> list[list[Hashable]]:
    """A key for each picture of each group; two are equal if, and only if, the files are, byte for byte.

    Of files of the same length the edges are compared, and the whole where these agree.
    """
    files = [file for group in groups for file in group.files()]
    keys: list[Hashable] = [file.size for file in files]
    for question in (sha256_of_edges, sha256_of):
        counts = Counter(keys)
        places = [place for place, key in enumerate(keys) if counts[key] > 1]
        answers = remembered(question, [files[place] for place in places], "Comparing pictures")
        for place, answer in zip(places, answers, strict=True):
            keys[place] = (keys[place], answer)
    rest = iter(keys)
    return [list(islice(rest, len(group))) for group in groups]


def sha256_of_edges(path: Path) -> str:
    """SHA-256 of the first and the last bytes of a file."""
    with path.open("rb") as file:
        first = file.read(EDGE)
        file.seek(max(0, path.stat().st_size - EDGE))
        return hashlib.sha256(first + file.read(EDGE)).hexdigest()
