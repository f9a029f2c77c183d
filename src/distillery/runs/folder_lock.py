"""One process at a time runs a job in a folder."""

from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from distillery.core.errors import UserError
from distillery.core.process import is_main
from distillery.results.layout import LOCK


class FolderLock:
    """Within: no other process runs a job in the folder. The kernel frees the lock of a process that is killed.

    A folder that is not there yet is locked when `take` is called. One that cannot be written is not locked: no job
    runs in it. Of several ranks the first one locks it.

    Raises:
        UserError: another process runs a job in the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = FileLock(folder / LOCK, timeout=0)

    def take(self) -> None:
        """Lock the folder, unless this is done already."""
        if self._lock.is_locked or not is_main():
            return
        try:
            self._lock.acquire()
        except Timeout:
            raise UserError(
                f"{self._folder} is in use: another process runs a job in it. Wait for it to end, or choose another "
                "folder."
            ) from None
        except PermissionError:
            return

    def __enter__(self) -> Self:
        if self._folder.is_dir():
            self.take()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._lock.is_locked:
            (self._folder / LOCK).unlink(missing_ok=True)  # a process that has opened it sees that it is gone
        self._lock.release()
