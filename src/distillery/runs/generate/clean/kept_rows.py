"""The rows that are kept, in the file that they are written to."""

import json
from array import array
from pathlib import Path
from types import TracebackType
from typing import Self

from distillery.runs.generate.clean.rows import Row, read_row


class KeptRows:
    """Rows in the order in which they were appended, read back from the file, so that memory does not hold them."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b")
        self._starts, self._lines = array("q"), array("q")

    def append(self, row: Row) -> None:
        self._file.seek(0, 2)
        self._starts.append(self._file.tell())
        self._lines.append(row.line)
        self._file.write(f"{json.dumps(row.given, ensure_ascii=False)}\n".encode())

    def __getitem__(self, number: int) -> Row:
        self._file.seek(self._starts[number])
        return read_row(json.loads(self._file.readline()), self._lines[number], "")

    def __len__(self) -> int:
        return len(self._starts)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
