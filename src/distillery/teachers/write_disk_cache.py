"""Writes a teacher's signals to disk, so that a killed process can be resumed and leaves the same bytes."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as Bar
from rich.text import Text
from safetensors.torch import save
from torch import Tensor

from distillery.core.errors import UserError
from distillery.core.files import atomic_write, remove_unfinished, sha256_of
from distillery.core.terminal import plain_console, say
from distillery.teachers.cache_format import (
    HEAD,
    MANIFEST,
    Array,
    Contents,
    Layout,
    array_path,
    checksum,
    differences,
    to_arrays,
)

PROGRESS = "progress.json"
EVERY = 30.0  # seconds between two points from which a killed process is resumed
Batch = Mapping[str, Tensor]


class Rows(NamedTuple):
    """Signals of a batch, sample by sample.

    Attributes:
        columns: of its N rows of logits, by name: [N, ...].
        samples: of which sample each row is, [N].
        positions: where in the sample each row stands, [N]; None: a sample has one row.
        view: the number of the view of all samples.
        layers: of its B samples, by the names of `Contents.layers`: [B, ...].
    """

    columns: Mapping[str, Tensor]
    samples: Tensor
    positions: Tensor | None
    view: int = 0
    layers: Mapping[str, Tensor] = {}


def write_cache(
    folder: Path,
    contents: Contents,
    layout: Layout,
    batches: Callable[[int], Iterable[Batch]],
    number: int,
    rows_of: Callable[[Batch], Rows],
    head: Mapping[str, Tensor],
    every: float = EVERY,
) -> Contents:
    """Fill the folder with the signals of all samples, from where a killed process has left it.

    Args:
        layout: where the rows of each sample are.
        batches: the batches from one of them on.
        number: how many there are.
        rows_of: the teacher's signals of a batch.
        head: what `head.safetensors` holds; empty: there is none.
        every: seconds between two points from which it can be resumed.

    Returns: what the folder holds; it is not marked as complete.

    Raises:
        UserError: the folder holds something else, the disk is full, or the user stops it (Ctrl-C).
    """
    if done := _begin(folder, contents, layout, head):
        say(f"{folder} holds {done:,} of {number:,} batches: going on with the others.")
    arrays = {name: np.load(array_path(folder, name), mmap_mode="r+") for name in contents.arrays}
    saved = time.monotonic()
    with Progress(
        TextColumn("The teacher's signals"), BarColumn(), _Speed(), TimeRemainingColumn(), transient=True,
        console=plain_console(), disable=not plain_console().is_terminal,
    ) as progress:  # fmt: skip
        total = contents.views * contents.rows
        bar = progress.add_task("", total=total, completed=total * done // number)
        try:
            for batch in batches(done):
                rows = rows_of(batch)
                _write_rows(contents, layout, arrays, rows)
                done += 1
                progress.advance(bar, len(rows.samples))
                if time.monotonic() - saved >= every or done == number:
                    _save(folder, arrays, done)
                    saved = time.monotonic()
        except KeyboardInterrupt:
            _save(folder, arrays, done)
            raise UserError(
                f"Stopped: {folder} holds {done:,} of {number:,} batches. Repeat the command to go on with the others."
            ) from None
    small = ["index.npy", *(["lengths.npy"] if contents.per_token else []), *([HEAD] if head else [])]
    return replace(contents, sha256={name: sha256_of(folder / name) for name in small})


def finish(folder: Path, contents: Contents) -> None:
    """Mark the cache as complete."""
    replace(contents, complete=True).write(folder)
    (folder / PROGRESS).unlink(missing_ok=True)


def _begin(folder: Path, contents: Contents, layout: Layout, head: Mapping[str, Tensor]) -> int:
    """Make the files, or find them as a killed process has left them. Returns how many batches are done."""
    files = {*(f"{name}.npy" for name in (*contents.arrays, "index", "lengths")), MANIFEST, PROGRESS, HEAD}
    remove_unfinished(folder)
    if (folder / MANIFEST).is_file():
        refuse_another(folder, contents)
        return int(json.loads((folder / PROGRESS).read_text())["batches"])
    if folder.exists() and (others := sorted({path.name for path in folder.iterdir() if path.name[0] != "."} - files)):
        raise UserError(f"{folder} holds {others[0]!r}, which is not part of a cache. Choose another folder: out=…")
    folder.mkdir(parents=True, exist_ok=True)
    np.save(array_path(folder, "index"), layout.index)
    if contents.per_token:
        np.save(array_path(folder, "lengths"), layout.lengths.astype(np.int32))
    for name, (number, column) in contents.arrays.items():
        _allocate(folder, name, (number, *column.shape), column.stored)
    if head:
        with atomic_write(folder / HEAD) as unfinished:
            unfinished.write_bytes(save({name: tensor.contiguous().cpu() for name, tensor in head.items()}))
    _save_progress(folder, 0)
    contents.write(folder)
    return 0


def refuse_another(folder: Path, contents: Contents) -> None:
    """Refuse to resume a cache of something else."""
    there = Contents.read(folder)
    here = replace(contents, evaluations=there.evaluations, sha256=there.sha256, complete=there.complete)
    if there != here:
        differ = differences(there.key, here.key) or differences(vars(there), vars(here))
        told = "; ".join(f"another {name}{value and ': ' + value}" for name, value in differ.items())
        raise UserError(f"{folder} holds other signals ({told}). Choose another folder (out=…), or remove this one.")


def free_bytes(folder: Path) -> int:
    """What the disk of a folder, which need not be there yet, has free."""
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    return shutil.disk_usage(existing).free


def _allocate(folder: Path, name: str, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
    """An array of zeros, whose space on the disk is reserved: a full disk would end a process that writes into it."""
    path = array_path(folder, name)
    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=tuple(shape)).flush()
    if not hasattr(os, "posix_fallocate"):  # on a Mac: what is free has been compared with the size, see `tell_size`
        return
    with path.open("rb+") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}. Choose another folder: out=…") from error


def _save(folder: Path, arrays: Mapping[str, np.memmap[Any, Any]], batches: int) -> None:
    """Make this a point from which a killed process is resumed."""
    for array in arrays.values():
        array.flush()
    _save_progress(folder, batches)


def _save_progress(folder: Path, batches: int) -> None:
    with atomic_write(folder / PROGRESS) as unfinished:
        unfinished.write_text(json.dumps({"batches": batches}))


def _write_rows(contents: Contents, layout: Layout, arrays: Mapping[str, Array], rows: Rows) -> None:
    given = dict(rows.columns) | ({} if rows.positions is None else {"positions": rows.positions})
    values = to_arrays(given, contents.columns)
    samples, counts = rows.samples.cpu(), torch.ones_like(rows.samples, device="cpu")
    if rows.positions is not None:
        samples, counts = torch.unique_consecutive(samples, return_counts=True)
    of_layers = [
        to_arrays({next(iter(columns)): rows.layers[name]}, columns) for name, columns in contents.layer_columns.items()
    ]
    first = 0
    for at, (number, count) in enumerate(zip(layout.numbers(samples.numpy()).tolist(), counts.tolist(), strict=True)):
        if number < 0 or layout.lengths[number] != count:
            raise RuntimeError("the data have changed since the cache was begun")
        entry, start = rows.view * contents.samples + number, rows.view * contents.rows + layout.starts[number]
        part = {name: array[first : first + count] for name, array in values.items()}
        own = [{name: array[at] for name, array in each.items()} for each in of_layers]
        for name, array in part.items():
            arrays[name][start : start + count] = array
        for name, array in chain.from_iterable(each.items() for each in own):
            arrays[name][entry] = array
        arrays["checksums"][entry] = [checksum(each) for each in (part, *own)]
        first += count


class _Speed(ProgressColumn):
    """Rows a second."""

    def render(self, task: Bar) -> Text:
        return Text(f"{task.completed:,.0f} of {task.total or 0:,.0f}, {task.speed or 0:,.0f}/s")


def tell_size(contents: Contents, folder: Path) -> None:
    """Say what the cache will take, and refuse it if the disk has not that much."""
    rows, free = contents.views * contents.rows, free_bytes(folder)
    of_layers = [column for columns in contents.layer_columns.values() for column in columns.values()]
    each = contents.bytes_a_row + sum(column.bytes for column in of_layers)
    what = f"{rows:,} {'tokens' if contents.per_token else 'samples'}"
    if not folder.joinpath(MANIFEST).is_file() and contents.bytes > free:
        raise UserError(
            f"{what} of {each:,} bytes are {size(contents.bytes)}, but the disk of {folder} has {size(free)} free. "
            "Choose another folder (out=…), a smaller type (dtype=…), fewer classes (k=…), or signals=sampled; of "
            "images fewer views (data.views), or losses on fewer or smaller layers."
        )
    views = "" if contents.views == 1 else f" ({contents.views} views of {contents.rows:,})"
    layers = f" ({contents.bytes_a_row:,} of them for logits, the rest for {', '.join(contents.layers)})"
    say(
        f"{what}{views} that can contribute to the loss, {each:,} bytes each{layers if of_layers else ''}: "
        f"{size(contents.bytes)} of {size(free)} free"
    )


def size(number: float) -> str:
    """A number of bytes."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if number < 1024 or unit == "TiB":
            return f"{number:,.0f} {unit}" if unit == "bytes" else f"{number:,.1f} {unit}"
        number /= 1024
    raise AssertionError
