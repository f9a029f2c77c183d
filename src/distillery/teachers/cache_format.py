"""What a folder of a teacher's signals holds: `distill-cache` writes it, `DiskCache` reads it.

`cache.json` says what the folder holds (`Contents`). The other files are arrays (`numpy.load` reads them). Those of M
samples with R rows of logits that may bear loss, in V views, are

- `index` [M]: the samples' positions in the data, ascending
- for tokens also `lengths` [M], the rows of each sample, and `positions` [R], where in the sample each row stands
- signals=hidden: `hidden` [V·R,H], the input of the teacher's head, which lies in `head.safetensors`
- signals=topk: `classes` and `log_p` [V·R,k], the likeliest first, and `log_tail` [V·R], the log of all other mass
- signals=sampled: `classes` and `log_p` [V·R,k], drawn from the teacher with replacement
- signals=full: `logits` [V·R,C]
- `layer0`, `layer1`, … [V·M,…]: what each sample gives at the layers that `cache.json` names in this order
- `checksums` [V·M,1+layers]: the CRC-32 of each sample's rows, and of each of its layers

The rows of a sample lie one after the other, the samples in the order of `index`, one view after the other.
Log-probabilities are the teacher's at T = 1. bfloat16 is stored as the uint16 of its bits. int8 values are to be
multiplied by the float32 in `<name>_scale`, one for each row or sample: its largest absolute value, over 127.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillery.core.errors import UserError, did_you_mean_beside
from distillery.core.files import atomic_write

Kind = Literal["hidden", "topk", "sampled", "full"]
Array = NDArray[Any]
VERSION = 2  # 1 had neither views nor layers
MANIFEST, HEAD = "cache.json", "head.safetensors"
SMALL_IDS = 1 << 16
HASH = 64  # the length of a hash, which tells a reader nothing
SCALE, LARGEST = "_scale", 127  # of int8: the ending of its scales' name, and the largest number


class Column(NamedTuple):
    """An array with a row for each row of logits, or for each sample.

    Attributes:
        shape: of a row.
        type: of the values. bfloat16 is none of NumPy's: see `stored`.
    """

    shape: tuple[int, ...]
    type: str

    @property
    def stored(self) -> np.dtype[Any]:
        return np.dtype("uint16" if self.type == "bfloat16" else self.type)

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape)) * self.stored.itemsize


def columns_of(values: Mapping[str, Column]) -> dict[str, Column]:
    """The columns in which these values are stored: with those of the scales, where they are int8."""
    scales = {name + SCALE: Column((), "float32") for name, column in values.items() if column.type == "int8"}
    return {**values, **scales}


class Layer(TypedDict):
    """What is stored of a layer: the shape of one sample's output, its type in the teacher, and that in the file."""

    shape: list[int]
    dtype: str
    stored: str


@dataclass(frozen=True)
class Contents:
    """What `cache.json` says.

    Attributes:
        signals, k, dtype: what is stored of a row, see above. `k` is 0 where a row has all classes.
        seed: of the drawn classes.
        classes: logits of a row.
        width: of a hidden row.
        softcap: of the head, see `Headed`.
        samples, rows: how many there are, in each view.
        per_token: whether a sample has a row for each token.
        length: more than the largest position.
        key: what the signals depend on, by what it is called; another value is another cache.
        teacher: what a run's record says of the teacher.
        evaluations: its score and loss by split and task; the predictions lie in files.
        sha256: of the small files.
        complete: False while it is being written.
        views: how many versions of each sample there are, see `VisionData`.
        layers: what is stored besides, by its name in `by_sample`.
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
    views: int = 1
    layers: dict[str, Layer] = field(default_factory=dict)

    @property
    def columns(self) -> dict[str, Column]:
        """The arrays with a row for each row of logits, by name."""
        few = Column((self.k,), _ids(self.classes))
        tail = Column((), "float32" if self.dtype == "int8" else self.dtype)
        columns = {
            "hidden": {"hidden": Column((self.width,), self.dtype)},
            "topk": {"classes": few, "log_p": Column((self.k,), self.dtype), "log_tail": tail},
            "sampled": {"classes": few, "log_p": Column((self.k,), self.dtype)},
            "full": {"logits": Column((self.classes,), self.dtype)},
        }[self.signals]
        if self.per_token:
            columns["positions"] = Column((), _ids(self.length))
        return columns_of(columns)

    @property
    def layer_columns(self) -> dict[str, dict[str, Column]]:
        """The arrays with a row for each sample, by name, of each layer."""
        return {
            name: columns_of({f"layer{number}": Column((*layer["shape"],), layer["stored"])})
            for number, (name, layer) in enumerate(self.layers.items())
        }

    @property
    def arrays(self) -> dict[str, tuple[int, Column]]:
        """All of them that are filled with signals, by name: how many rows each has, and what these are."""
        of_rows = {name: (self.views * self.rows, column) for name, column in self.columns.items()}
        of_samples = {
            name: (self.views * self.samples, column)
            for columns in self.layer_columns.values()
            for name, column in columns.items()
        }
        checksums = self.views * self.samples, Column((1 + len(self.layers),), "uint32")
        return {**of_rows, **of_samples, "checksums": checksums}

    @property
    def bytes_a_row(self) -> int:
        return sum(column.bytes for column in self.columns.values())

    @property
    def bytes(self) -> int:
        """What the arrays take on disk."""
        about_samples = self.samples * (12 if self.per_token else 8)
        return about_samples + sum(number * column.bytes for number, column in self.arrays.values())

    def write(self, folder: Path) -> None:
        with atomic_write(folder / MANIFEST) as unfinished:
            unfinished.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Contents":
        """Raises UserError if there is no cache in the folder."""
        path = folder / MANIFEST
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["version"] > VERSION:
                raise UserError(
                    f"{path} has version {found['version']}, and this version of Distillery reads up to {VERSION}. "
                    "Write the cache again, into another folder."
                )
            return cls(**{each.name: found[each.name] for each in fields(cls) if each.name in found})
        except OSError:
            raise UserError(
                f"{folder} holds no teacher's signals: it has no {MANIFEST}."
                + did_you_mean_beside(folder, lambda each: (each / MANIFEST).is_file())
                + f" To write them: distill-cache <the run's settings> signals=full out={folder}"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}). Write the cache again, into another folder.") from None


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, str]:
    """For the user: what is another there than here, by its name; a text is empty where only hashes could be told."""
    pairs = {name: (there.get(name, "none"), here.get(name, "none")) for name in {**here, **there}}
    return {
        name: f"{theirs} there, {mine} here" if all(map(_tells, (theirs, mine))) else ""
        for name, (theirs, mine) in pairs.items()
        if theirs != mine
    }


def _tells(value: Any) -> bool:
    return not isinstance(value, Mapping) and len(str(value)) != HASH


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


def _ids(below: int) -> str:
    """The type of numbers less than that."""
    return "uint16" if below <= SMALL_IDS else "uint32"


def array_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def checksum(rows: Mapping[str, Array]) -> int:
    """CRC-32 of the rows of one sample."""
    sum_so_far = 0
    for name in sorted(rows):
        sum_so_far = zlib.crc32(np.ascontiguousarray(rows[name]).view(np.uint8).data, sum_so_far)
    return sum_so_far


def to_arrays(values: Mapping[str, Tensor], columns: Mapping[str, Column]) -> dict[str, Array]:
    """The values in the types of the files, with the scales of int8. Raises UserError if they do not fit into them."""
    arrays: dict[str, Array] = {}
    for name, tensor in values.items():
        given, kind = tensor.detach().cpu(), columns[name].type
        if kind.startswith("uint"):
            arrays[name] = given.numpy().astype(kind)
            continue
        if kind == "int8":
            scale = given.flatten(1).abs().amax(1).float() / LARGEST
            over = scale.clamp_min(torch.finfo(torch.float32).tiny).view(-1, *[1] * (given.dim() - 1))
            arrays[name + SCALE], cast = scale.numpy(), (given / over).round().to(torch.int8)
            fits = bool(scale.isfinite().all())
        else:
            cast = given.to(getattr(torch, kind))
            fits = not bool((cast.isinf() & ~given.isinf()).any())
        if not fits:
            raise UserError(f"dtype={kind}: the teacher's values reach {given.abs().max():.3g}. Set dtype=float32.")
        arrays[name] = cast.view(torch.uint16).numpy() if kind == "bfloat16" else cast.numpy()
    return arrays


def to_tensors(arrays: Mapping[str, Array], columns: Mapping[str, Column]) -> dict[str, Tensor]:
    """The values that `to_arrays` was given, as far as their types tell; of int8 in float32."""
    found: dict[str, Tensor] = {}
    for name, column in columns.items():
        values = arrays[name]
        if column.type.startswith("uint"):
            found[name] = torch.from_numpy(values.astype(np.int64))
        elif column.type == "bfloat16":
            found[name] = torch.from_numpy(values).view(torch.bfloat16)
        elif column.type == "int8":
            scale = arrays[name + SCALE].reshape(-1, *[1] * (values.ndim - 1))
            found[name] = torch.from_numpy(values * scale)
        elif not name.endswith(SCALE):
            found[name] = torch.from_numpy(values)
    return found
