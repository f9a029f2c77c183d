"""What a teacher that was run elsewhere has given for the samples of a data set, in a column or a file."""

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from distillery.core.errors import UserError, did_you_mean
from distillery.core.files import sha256_of
from distillery.data.images import EncodedImages
from distillery.data.module import STAGES, Data, Stage
from distillery.data.raw_data import Split, Texts
from distillery.data.soft_labels import StoredTargets
from distillery.data.target_files import LOGITS, PROBABILITIES, SUFFIXES, TargetFile, read_targets

NAMES = {"train": "training", "val": "validation", "test": "test"}
SHOWN = 3  # samples in a message


def with_stored_targets(
    data: Data, name: str, path: str | None, temperature: float, missing: Literal["refuse", "skip"]
) -> Data:
    """The data with the stored targets of the teacher `name`: in `targets`, and for each sample in its batches.

    The logits are the logarithms of the probabilities, times `temperature`: their softmax at that temperature gives
    the probabilities back. A probability of 0 counts as the least positive number of float32.

    Args:
        path: an .npz or .parquet file with `probabilities` or `logits` [M, C]; `index` [M], positions in the raw data,
            or `path` [M], picture files relative to the root (without either, all samples of the training file in
            order); `split` [M], the raw split that `index` counts in, of train by default; `classes` [C]. None: the
            column `data.source.soft_label`.
        temperature: at which the teacher's probabilities, or logits, were computed.
        missing: whether training samples without a target are refused, or left out of training.

    Raises:
        UserError: there are no such targets, rows are no distributions, training samples have none, or samples are
            mixed.
    """
    setting, raw = f"teachers.{name}", _raw_splits(data)
    if data.mixes:
        raise UserError(
            f"{setting}: its stored targets are of single images, and data.augment mixes them. Set "
            "data.augment.mixup=0 and data.augment.cutmix=0, or choose a teacher that sees the mixed images."
        )
    if path is None:
        source, sha256, notes = "the column data.source.soft_label", data.soft_labels_sha256, list[str]()
        classes: tuple[str, ...] | None = data.classes
        if data.raw.train.soft_labels is None:
            raise UserError(
                f"{setting}.path is null, and the data have no soft labels. Set {setting}.path to a file "
                f"({' or '.join(SUFFIXES)}), or, for a table, data.source.soft_label to the column of probabilities."
            )
        kind = PROBABILITIES if data.classes else LOGITS
        tables = {stage: split.soft_labels for stage, split in raw.items()}
    else:
        file = read_targets(Path(path), f"{setting}.path")
        if file.kind == PROBABILITIES and not data.classes:
            raise UserError(f"{setting}.path={path}: the data have no classes. Call the array `logits`.")
        tables, notes = _placed(file, data, raw)
        source, sha256, classes, kind = path, sha256_of(file.path), file.classes, file.kind
    notes.insert(0, f"its {kind} are stored in {source} (SHA-256 {sha256[:12]}…)")
    if data.varies:
        notes.append(f"each sample has one target, whatever data.{data.varies} makes of it in an epoch")
    data = _with_targets_alone(data, setting, source, tables["train"], missing, notes)
    made: dict[int, Tensor] = {}  # splits often share a table
    logits: dict[Stage, Tensor] = {}
    unscored: list[str] = []
    for stage in STAGES:
        table, indices = tables[stage], data.splits[stage].indices
        without = len(indices) if table is None else int(table[indices, 0].isnan().sum())
        if without:
            unscored.append(f"{without:,} of the {len(indices):,} {NAMES[stage]} samples")
        elif table is not None and len(indices):
            logits[stage] = made.setdefault(id(table), _logits(table, kind, temperature))
    if unscored:
        notes.append(f"it is not scored where {' and '.join(unscored)} have no stored target")
    return data.with_targets(name, StoredTargets(logits, classes or None, f"stored in {source}", sha256, tuple(notes)))


def _raw_splits(data: Data) -> dict[Stage, Split]:
    """The split of the raw data that the samples of each split are from."""
    return {"train": data.raw.train, "val": data.raw.val or data.raw.train, "test": data.raw.test}


def _logits(table: Tensor, kind: str, temperature: float) -> Tensor:
    if kind == PROBABILITIES:
        table = table.clamp_min(torch.finfo(table.dtype).tiny).log()
    return table * temperature


def _with_targets_alone(
    data: Data, setting: str, source: str, table: Tensor | None, missing: str, notes: list[str]
) -> Data:
    """The data without the training samples that have no target, if these may be missing."""
    indices = data.splits["train"].indices
    without = torch.ones(len(indices), dtype=torch.bool) if table is None else table[indices, 0].isnan()
    count = int(without.sum())
    if not count:
        return data
    named = ", ".join(_called(data, position) for position in indices[without][:SHOWN].tolist())
    found = f"{count:,} of the {len(indices):,} training samples have no target in {source}, for instance {named}"
    if missing == "refuse" or count == len(indices):
        mend = "" if count == len(indices) else f", or leave these samples out of training with {setting}.missing=skip"
        raise UserError(f"{setting}: {found}. Add them{mend}.")
    notes.append(f"{found}: left out of training")
    return data.narrowed(indices[~without])


def _called(data: Data, position: int) -> str:
    """What a training sample is called in messages."""
    inputs = data.raw.train.inputs
    if isinstance(inputs, Texts):
        return repr(str(inputs.first[position])[:60])
    return inputs.pictures.open(position)[1] if isinstance(inputs, EncodedImages) else f"index {position}"


def _placed(file: TargetFile, data: Data, raw: dict[Stage, Split]) -> tuple[dict[Stage, Tensor | None], list[str]]:
    """The values of a file by position in the inputs of each split, NaN where there are none, and remarks."""
    rows, notes = len(file.values), list[str]()
    if file.unread:
        notes.append(f"arrays of {file.path.name} that are not read: {', '.join(file.unread)}")
    if file.classes is None and data.classes:
        notes.append(f"{file.path.name} names no classes: its columns are taken in the order of the data's")
    stores = {id(split.inputs): split for split in raw.values()}
    of_row = np.full(rows, id(raw["train"].inputs))
    if file.splits is not None:
        for given in np.unique(file.splits).tolist():
            if given not in STAGES or (given == "val" and data.raw.val is None):
                cut = " Its validation samples are cut from train: call them train." if given == "val" else ""
                raise UserError(f"'{file.path}': split has {given!r}.{cut or did_you_mean(str(given), STAGES)}")
            of_row[file.splits == given] = id(raw[given].inputs)
    if "path" in file.keys:
        of_row, positions = _found_by_path(file, data, stores)
        if unknown := int((positions < 0).sum()):
            first = file.keys["path"][positions < 0][0]
            notes.append(f"{unknown:,} rows of {file.path.name} are of no picture in the data, for instance {first}")
    elif "index" in file.keys:
        positions = file.keys["index"]
    else:
        positions = np.arange(rows)
        if rows != (size := len(raw["train"].targets)):
            raise UserError(
                f"'{file.path}' has no array `index`, and {rows:,} rows where the data have {size:,} samples. Add "
                "`index`, the position of each row's sample in the raw data (`index` of a batch), or, for pictures in "
                "folders, `path`."
            )
        notes.append(f"{file.path.name} has no index: its rows are taken in the order of the data")
    tables: dict[int, Tensor] = {}
    for store, split in stores.items():
        own = np.flatnonzero(of_row == store)
        if not len(own):
            continue
        places, size = positions[own], len(split.targets)
        if len(wrong := places[(places < 0) | (places >= size)]):
            raise UserError(f"'{file.path}': there is no sample {wrong[0]}; the positions are from 0 to {size - 1:,}.")
        _, first, counts = np.unique(places, return_index=True, return_counts=True)
        if len(twice := np.flatnonzero(counts > 1)):
            key = next(iter(file.keys))
            raise UserError(
                f"'{file.path}': {len(twice):,} samples have several rows, for instance {key} "
                f"{file.keys[key][own[first[twice[0]]]]}."
            )
        table = torch.full((size, file.values.shape[1]), torch.nan)
        table[torch.from_numpy(places)] = torch.from_numpy(file.values[own])
        tables[store] = table
    return {stage: tables.get(id(split.inputs)) for stage, split in raw.items()}, notes


def _found_by_path(
    file: TargetFile, data: Data, stores: dict[int, Split]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """For each row the inputs that its picture is in, and the position there; -1: it is in none."""
    known: dict[str, tuple[int, int]] = {}
    if data.root is not None:
        for store, split in stores.items():
            if isinstance(split.inputs, EncodedImages):
                for position, path in enumerate(split.inputs.paths):
                    known[_absolute(path)] = store, position
    if not known:
        raise UserError(f"'{file.path}' has `path`, and the samples of '{data.name}' are no files. Use `index`.")
    places = [
        known.get(_absolute(Path(str(data.root), path)), known.get(_absolute(path), (0, -1)))
        for path in file.keys["path"].tolist()
    ]
    if all(position < 0 for _, position in places):
        raise UserError(
            f"'{file.path}': no path is that of a picture in the data: {file.keys['path'][0]} in the file, "
            f"{os.path.relpath(next(iter(known)), str(data.root))} in the data. Give them relative to data.root."
        )
    return np.array([store for store, _ in places]), np.array([position for _, position in places])


def _absolute(path: str | Path) -> str:
    return os.path.normpath(Path(path).absolute())
