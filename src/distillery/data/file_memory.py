"""What has been found out about files, kept on the disk as long as the files do not change."""

import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import track

from distillery.core.paths import cache_folder

DATABASE = "files.sqlite"
PART = 4096  # files that are handed to the threads at once: a million would fill the memory with calls
TABLES = """
    CREATE TABLE IF NOT EXISTS answers (path BLOB, size INTEGER, time INTEGER, question TEXT, answer TEXT,
        PRIMARY KEY (path, question)) WITHOUT ROWID;
    CREATE TEMP TABLE asked (place INTEGER PRIMARY KEY, path BLOB, size INTEGER, time INTEGER);
"""


class File(NamedTuple):
    """A file: its absolute path, its length in bytes and the time of its last change in nanoseconds."""

    path: bytes
    size: int
    time: int


def remembered(question: Callable[[Path], str], files: Sequence[File], title: str) -> list[str]:
    """`question(path)` for each file; asked again only if the length or the time of a file has changed.

    The answers are kept in a database in the cache folder. If that cannot be written, everything is asked anew.

    Args:
        question: a function; its name stands for it in the database.
        title: of the progress bar.
    """
    answers: dict[int, str] = {}
    with suppress(OSError, sqlite3.Error), closing(_database()) as database:
        rows = ((place, *file) for place, file in enumerate(files))
        database.executemany("INSERT INTO asked VALUES (?, ?, ?, ?)", rows)
        known = "SELECT place, answer FROM asked JOIN answers USING (path, size, time) WHERE question = ?"
        answers = dict(database.execute(known, [question.__name__]))
    new = [place for place in range(len(files)) if place not in answers]
    silent = not new or not Console().is_terminal  # which would leave an empty line
    with ThreadPoolExecutor() as pool:
        parts = (new[start : start + PART] for start in range(0, len(new), PART))
        paths = ([Path(os.fsdecode(files[place].path)) for place in part] for part in parts)
        found = (answer for part in paths for answer in pool.map(question, part))
        answers |= zip(new, track(found, title, len(new), transient=True, disable=silent), strict=True)
    with suppress(OSError, sqlite3.Error), closing(_database()) as database, database:
        added = ((*files[place], question.__name__, answers[place]) for place in new)
        database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)", added)
    return [answers[place] for place in range(len(files))]


def _database() -> sqlite3.Connection:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(folder / DATABASE, timeout=60)  # seconds to wait for other processes
    database.executescript(TABLES)
    return database
