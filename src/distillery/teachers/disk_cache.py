"""Reads a teacher's signals from files, by training sample: they are mapped into memory and never read whole."""

from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from distillery.core.errors import UserError
from distillery.core.files import sha256_of
from distillery.teachers.cache_format import HEAD, Array, Contents, Layout, array_path, checksum, to_tensors


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
        contents = self.contents
        self.layout = Layout(self._array("index"), self._array("lengths") if contents.per_token else None)
        self._arrays = {name: self._array(name) for name in contents.arrays}
        for name, (number, column) in contents.arrays.items():
            given, shape = self._arrays[name], (number, *column.shape)
            if name == "checksums" and contents.version == 1:
                given = self._arrays[name] = given[:, None]
            if (given.shape, given.dtype) != (shape, column.stored):
                raise self._torn(f"{name}.npy")

    @cached_property
    def head(self) -> dict[str, Tensor]:
        """`weight`, and `bias` if it has one, of the teacher's head; where hidden rows are stored."""
        return load_file(self.folder / HEAD)

    def _array(self, name: str) -> Array:
        try:
            return np.asarray(np.load(array_path(self.folder, name), mmap_mode="r"))
        except (OSError, ValueError):  # too short for its shape
            raise self._torn(f"{name}.npy") from None

    def _torn(self, name: str) -> UserError:
        return UserError(
            f"{self.folder / name} is missing or not as distill-cache wrote it. Write the cache again, into another "
            "folder."
        )

    def rows(self, index: Tensor, view: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """The stored rows of the samples `index` [B], one sample after the other, and how many each has [B].

        Args:
            view: the number of each one's view [B]; None: 0.

        Raises:
            UserError: a sample is not stored, or its rows are damaged.
        """
        numbers, view_numbers = self._numbers(index, view)
        starts, lengths = view_numbers * self.contents.rows + self.layout.starts[numbers], self.layout.lengths[numbers]
        ends = lengths.cumsum()
        places = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
        columns = self.contents.columns
        found = {name: self._arrays[name][places] for name in columns}
        parts = (
            {name: each[end - n : end] for name, each in found.items()} for n, end in zip(lengths, ends, strict=True)
        )
        self._verify(0, parts, numbers, view_numbers)
        return to_tensors(found, columns), torch.from_numpy(lengths)

    def layers(self, names: Collection[str], index: Tensor, view: Tensor | None = None) -> dict[str, Tensor]:
        """What is stored of these layers: of the samples `index` [B] in the views [B] (None: 0), in the teacher's type.

        Raises:
            UserError: see `rows`.
        """
        numbers, view_numbers = self._numbers(index, view)
        entries, found = view_numbers * self.contents.samples + numbers, {}
        for at, (name, columns) in enumerate(self.contents.layer_columns.items()):
            if name in names:
                values = {each: self._arrays[each][entries] for each in columns}
                parts = ({each: array[row] for each, array in values.items()} for row in range(len(entries)))
                self._verify(1 + at, parts, numbers, view_numbers)
                (tensor,) = to_tensors(values, columns).values()
                found[name] = tensor.to(getattr(torch, self.contents.layers[name]["dtype"]))
        return found

    def _numbers(self, index: Tensor, view: Tensor | None) -> tuple[Array, Array]:
        """Which samples, and which views of them, are asked for."""
        numbers = self.layout.numbers(index.cpu().numpy())
        if (numbers < 0).any():
            raise UserError(f"{self.folder} has no signals of sample {int(index[int(numbers.argmin())])} of the data.")
        return numbers, np.zeros_like(numbers) if view is None else view.cpu().numpy()

    def _verify(self, which: int, parts: Iterable[Mapping[str, Array]], numbers: Array, views: Array) -> None:
        """Compare what was read of each sample with its checksum."""
        expected = self._arrays["checksums"][views * self.contents.samples + numbers, which]
        for part, known, number in zip(parts, expected.tolist(), numbers, strict=True):
            if checksum(part) != known:
                raise UserError(
                    f"{self.folder} is damaged: the signals of sample {self.layout.index[number]} do not match their "
                    "checksum. Write the cache again, into another folder."
                )

    def padded(self, index: Tensor, length: int, view: Tensor | None = None) -> dict[str, Tensor]:
        """`rows` in the places of a batch: [B, ...], or of tokens [B, length, ...], 0 where nothing is stored."""
        joined, counts = self.rows(index, view)
        if not self.contents.per_token:
            return joined
        positions = joined.pop("positions")
        if len(positions) and int(positions.max()) >= length:
            raise UserError(
                f"{self.folder} has signals of {int(positions.max()) + 1} tokens, but the batch has {length}. The "
                "cache belongs to other data: write one for this run."
            )
        places = torch.arange(len(index)).repeat_interleave(counts) * length + positions
        return {  # in place: autocast on a CPU refuses index_copy of float16
            name: values.new_zeros(len(index) * length, *values.shape[1:])
            .index_copy_(0, places, values)
            .view(len(index), length, *values.shape[1:])
            for name, values in joined.items()
        }
