"""Answers on disk: each is bought once, and is there after the process is killed."""

import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from distillery.core.errors import UserError
from distillery.runs.generate.request import Answer

STORE = "answers.sqlite"
TABLES = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL, cost REAL NOT NULL);
CREATE TABLE IF NOT EXISTS under_way (key TEXT PRIMARY KEY, bound REAL NOT NULL);
CREATE TABLE IF NOT EXISTS lost (bound REAL NOT NULL);
"""


class Store:
    """The answers of one folder, by the keys of their requests. Each call is one transaction; any thread may call.

    A request is noted when it is sent, with the most that it can cost. If the process is killed, or the connection
    breaks, before the answer has come, the server may have charged for it: `recover` counts it as lost.

    Args:
        path: of the SQLite database.
        about: what all answers of the folder have in common.

    Raises:
        UserError: the file is no such database, belongs to something else, or the disk is full.
    """

    def __init__(self, path: Path, about: Mapping[str, str]) -> None:
        self._path, self._lock = path, threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._told():
            self._base = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._base.execute("PRAGMA journal_mode=WAL")  # a killed process loses no transaction
            self._base.executescript(TABLES)
            before = dict(self._base.execute("SELECT name, value FROM about"))
            if differ := [name for name, value in about.items() if before.get(name, value) != value]:
                name = differ[0]
                raise UserError(
                    f"{path.parent} has answers of another {name}: {before[name]}, not {about[name]}. Write to another "
                    "folder: out=…"
                )
            self._base.executemany("INSERT OR IGNORE INTO about VALUES (?, ?)", about.items())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._base.close()

    def recover(self) -> None:
        """Count the requests as lost that an earlier process had under way when it ended."""
        with self._told(), self._lock:
            self._base.execute("BEGIN")
            self._base.execute("INSERT INTO lost SELECT bound FROM under_way")
            self._base.execute("DELETE FROM under_way")
            self._base.execute("COMMIT")

    def send(self, key: str, bound: float) -> None:
        """Note that a request is sent which costs at most `bound`."""
        self._do("INSERT OR REPLACE INTO under_way VALUES (?, ?)", (key, bound))

    def fail(self, key: str) -> None:
        """Note that a request was refused, which costs nothing."""
        self._do("DELETE FROM under_way WHERE key = ?", (key,))

    def put(self, key: str, answer: Answer, cost: float) -> None:
        """Keep an answer."""
        with self._told(), self._lock:
            self._base.execute("BEGIN")
            self._base.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (key, answer.to_json(), cost))
            self._base.execute("DELETE FROM under_way WHERE key = ?", (key,))
            self._base.execute("COMMIT")

    def get(self, key: str) -> Answer | None:
        """The answer to a request, if there is one."""
        found = self._one("SELECT answer FROM answers WHERE key = ?", key)
        return None if found is None else Answer.from_json(found[0])

    def __contains__(self, key: object) -> bool:
        return self._one("SELECT 1 FROM answers WHERE key = ?", key) is not None

    @property
    def spent(self) -> tuple[float, float]:
        """What the answers have cost, and what requests may have cost whose answers were lost, in dollars."""
        with self._told(), self._lock:
            totals = (
                f"SELECT TOTAL({column}) FROM {table}" for column, table in (("cost", "answers"), ("bound", "lost"))
            )
            paid, lost = (float(self._base.execute(total).fetchone()[0]) for total in totals)
            return paid, lost

    def _one(self, question: str, key: object) -> tuple[str] | None:
        with self._told(), self._lock:
            found: tuple[str] | None = self._base.execute(question, (key,)).fetchone()
            return found

    def _do(self, command: str, values: tuple[str | float, ...]) -> None:
        with self._told(), self._lock:
            self._base.execute(command, values)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Within: errors of the database are the user's."""
        try:
            yield
        except sqlite3.Error as error:
            raise UserError(
                f"{self._path}: {error}. The answers that it holds are kept. Make room on the disk, or name another "
                "folder (out=…); then repeat the command."
            ) from error
