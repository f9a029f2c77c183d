"""A teacher's signals in files, by training sample: a folder that is mapped into memory and never read whole.

`cache.json` says what the folder holds (`Contents`). The other files are arrays (`numpy.load` reads them) with one row
for each row of logits that may bear loss, those of a sample one after the other:

- `index` [M] the samples' positions in the data, ascending; `checksums` [M] the CRC-32 of each one's rows
- for tokens also `lengths` [M] rows of each sample, and `positions` [R] where in the sample each row stands
- signals=hidden: `hidden` [R,H], the input of the teacher's head, which lies in `head.safetensors`
- signals=topk: `classes` and `log_p` [R,k], the likeliest first, and `log_tail` [R], the log of all other mass
- signals=sampled: `classes` and `log_p` [R,k], drawn from the teacher with replacement
- signals=full: `logits` [R,V]

Log-probabilities are the teacher's at T = 1. bfloat16 is stored as the uint16 of its bits.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from distillery.core.errors import UserError
from distillery.core.files import atomic_write, sha256_of

Kind = Literal["hidden", "topk", "sampled", "full"]
Array = NDArray[Any]
VERSION = 1
MANIFEST, HEAD = "cache.json", "head.safetensors"
DTYPES = {"float16": np.float16, "bfloat16": np.uint16, "float32": np.float32, "float64": np.float64}
SMALL_IDS = 1 << 16


class Column(NamedTuple):
    """An array with a row for each row of logits: the shape of a row, and its type in the file."""

    shape: tuple[int, ...]
    dtype: Any
    floats: bool = True


@dataclass(frozen=True)
class Contents:
    """What `cache.json` says.

    Attributes:
        signals, k, dtype: what is stored of a row, see above. `k` is 0 where a row has all classes.
        seed: of the drawn classes.
        classes: logits of a row.
        width: of a hidden row.
        softcap: of the head, see `Headed`.
        samples, rows: how many there are.
        per_token: whether a sample has a row for each token.
        length: more than the largest position.
        key: what the signals depend on, by what it is called; another value is another cache.
        teacher: what a run's record says of the teacher.
        evaluations: its score and loss by split and task; the predictions lie in files.
        sha256: of the small files.
        complete: False while it is being written.
    """

    signals: Kind
    k: int
    dtype: str
    seed: int
    classes: int
    width: int
    softcap: float | None
    samples: int
    rows: int
    per_token: bool
    length: int
    key: dict[str, str]
    teacher: dict[str, Any]
    evaluations: dict[str, Any] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    complete: bool = False
    version: int = VERSION

    @property
    def columns(self) -> dict[str, Column]:
        """The arrays with a row for each row of logits, by name."""
        value = DTYPES[self.dtype]
        few = Column((self.k,), np.uint16 if self.classes <= SMALL_IDS else np.uint32, floats=False)
        columns = {
            "hidden": {"hidden": Column((self.width,), value)},
            "topk": {"classes": few, "log_p": Column((self.k,), value), "log_tail": Column((), value)},
            "sampled": {"classes": few, "log_p": Column((self.k,), value)},
            "full": {"logits": Column((self.classes,), value)},
        }[self.signals]
        if self.per_token:
            columns["positions"] = Column((), np.uint16 if self.length <= SMALL_IDS else np.uint32, floats=False)
        return columns

    @property
    def bytes_a_row(self) -> int:
        return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype, _ in self.columns.values())

    @property
    def bytes(self) -> int:
        """What the arrays take on disk."""
        return self.rows * self.bytes_a_row + self.samples * (16 if self.per_token else 12)

    def write(self, folder: Path) -> None:
        with atomic_write(folder / MANIFEST) as unfinished:
            unfinished.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Contents":
        """Raises UserError if there is no cache in the folder."""
        path = folder / MANIFEST
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["version"] != VERSION:
                raise UserError(
                    f"{path} has version {found['version']}, and this version of Distillery reads {VERSION}. Write the "
                    "cache again, into another folder."
                )
            return cls(**{name: found[name] for name in (each.name for each in fields(cls))})
        except OSError:
            raise UserError(
                f"{folder} holds no teacher's signals: it has no {MANIFEST}. Write them first: distill-cache "
                f"<the run's settings> signals=topk out={folder}"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}). Write the cache again, into another folder.") from None


class Layout:
    """Where the rows of each sample are.

    Args:
        index: the samples' positions in the data, ascending [M].
        lengths: how many rows each has [M]; None: one.
    """

    def __init__(self, index: Array, lengths: Array | None) -> None:
        self.index = index
        self.lengths = np.ones(len(index), dtype=np.int64) if lengths is None else lengths.astype(np.int64)
        self.starts = self.lengths.cumsum() - self.lengths

    def numbers(self, index: Array) -> Array:
        """Which of the samples these positions in the data are; -1: none of them."""
        places = np.searchsorted(self.index, index).clip(0, len(self.index) - 1)
        return np.where(self.index[places] == index, places, -1)


def array_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def checksum(rows: Mapping[str, Array]) -> int:
    """CRC-32 of the rows of one sample."""
    sum_so_far = 0
    for name in sorted(rows):
        sum_so_far = zlib.crc32(np.ascontiguousarray(rows[name]).view(np.uint8).data, sum_so_far)
    return sum_so_far


def to_array(values: Tensor, column: Column, dtype: str) -> Array:
    """The values in the type of a file. Raises UserError if they do not fit into it."""
    values = values.detach().cpu()
    if not column.floats:
        return values.numpy().astype(column.dtype)
    cast = values.to(getattr(torch, dtype))
    if bool((cast.isinf() & ~values.isinf()).any()):
        raise UserError(f"dtype={dtype}: the teacher's values reach {values.abs().max():.3g}. Set dtype=float32.")
    return (cast.view(torch.int16).numpy().view(np.uint16) if dtype == "bfloat16" else cast.numpy()).copy()


def to_tensor(values: Array, column: Column, dtype: str) -> Tensor:
    if not column.floats:
        return torch.from_numpy(values.astype(np.int64))
    if dtype == "bfloat16":
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


class DiskCache:
    """Reads what `distill-cache` has written.

    Raises:
        UserError: there is no cache, or it is not complete, or files are missing, of another size or changed. Rows
            that are damaged are found when they are read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.contents = Contents.read(folder)
        if not self.contents.complete:
            raise UserError(f"{folder}: the cache is not complete. Repeat the distill-cache command to resume it.")
        for name, sha256 in self.contents.sha256.items():
            if not (folder / name).is_file() or sha256_of(folder / name) != sha256:
                raise self._torn(name)
        token = self.contents.per_token
        self.layout = Layout(self._array("index"), self._array("lengths") if token else None)
        self._checksums = self._array("checksums")
        self._columns = {name: self._array(name) for name in self.contents.columns}
        for name, column in self.contents.columns.items():
            if (self._columns[name].shape, self._columns[name].dtype) != (
                (self.contents.rows, *column.shape),
                np.dtype(column.dtype),
            ):
                raise self._torn(f"{name}.npy")

    @cached_property
    def head(self) -> dict[str, Tensor]:
        """`weight`, and `bias` if it has one, of the teacher's head; where hidden rows are stored."""
        return load_file(self.folder / HEAD)

    def _array(self, name: str) -> Array:
        try:
            return np.load(array_path(self.folder, name), mmap_mode="r")
        except (OSError, ValueError):  # too short for its shape
            raise self._torn(f"{name}.npy") from None

    def _torn(self, name: str) -> UserError:
        return UserError(
            f"{self.folder / name} is missing or not as distill-cache wrote it. Write the cache again, into another "
            "folder."
        )

    def rows(self, index: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The stored rows of the samples `index` [B], one sample after the other, and how many each has [B].

        Raises:
            UserError: a sample is not stored, or its rows are damaged.
        """
        numbers = self.layout.numbers(index.cpu().numpy())
        if (numbers < 0).any():
            raise UserError(f"{self.folder} has no signals of sample {int(index[int(numbers.argmin())])} of the data.")
        parts = []
        for number in numbers.tolist():
            rows = slice(self.layout.starts[number], self.layout.starts[number] + self.layout.lengths[number])
            part = {name: np.array(array[rows]) for name, array in self._columns.items()}
            if checksum(part) != self._checksums[number]:
                raise UserError(
                    f"{self.folder} is damaged: the signals of sample {self.layout.index[number]} do not match their "
                    "checksum. Write the cache again, into another folder."
                )
            parts.append(part)
        columns = self.contents.columns
        joined = {
            name: to_tensor(np.concatenate([part[name] for part in parts]), column, self.contents.dtype)
            for name, column in columns.items()
        }
        return joined, torch.from_numpy(self.layout.lengths[numbers])

    def padded(self, index: Tensor, length: int) -> dict[str, Tensor]:
        """The rows in the places of a batch: [B, ...], or of tokens [B, length, ...], 0 where nothing is stored."""
        joined, counts = self.rows(index)
        if not self.contents.per_token:
            return joined
        positions = joined.pop("positions")
        if len(positions) and int(positions.max()) >= length:
            raise UserError(
                f"{self.folder} has signals of {int(positions.max()) + 1} tokens, but the batch has {length}. The "
                "cache belongs to other data: write one for this run."
            )
        places = torch.arange(len(index)).repeat_interleave(counts) * length + positions
        return {
            name: values.new_zeros(len(index) * length, *values.shape[1:])
            .index_copy(0, places, values)
            .view(len(index), length, *values.shape[1:])
            for name, values in joined.items()
        }
