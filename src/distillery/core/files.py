"""Files written atomically (complete or absent, whenever the writing process is killed), and their hashes."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

SUFFIX = ".atomic_write"


@contextmanager
def atomic_write(path: Path, former: Path | None = None) -> Iterator[Path]:
    """Yield the name of a file to write. When the block ends, the file is flushed to the disk and replaces `path`.

    A reader of `path` sees the former file or the new one. If the block raises, the former file stays. With `former` it
    is kept under that name once the new one is on the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}{SUFFIX}")
    try:
        yield unfinished
        _flush(unfinished)
        if former is not None and path.exists():
            path.replace(former)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder to fill, which replaces the folder `path` when the block ends, and is removed if it raises."""
    unfinished, replaced = (path.with_name(f".{path.name}.{state}") for state in ("unfinished", "replaced"))
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if path.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            path.replace(replaced)  # one of the two is always there and complete
        unfinished.replace(path)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def atomic_writes(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """`atomic_write` of several files, none of which is replaced before all are on the disk."""
    with ExitStack() as stack:
        unfinished = [stack.enter_context(atomic_write(path)) for path in paths]
        yield unfinished
        for each in unfinished:
            _flush(each)


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_unfinished(folder: Path) -> None:
    """Remove unfinished files that killed processes have left anywhere in `folder`."""
    for unfinished in folder.rglob(f".*{SUFFIX}"):
        unfinished.unlink()
