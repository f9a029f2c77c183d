"""Images from the Hugging Face hub, or from tar and Parquet files."""

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import pyarrow.compute as pc
import torch
from datasets import Dataset, Image

from distillery.core.errors import UserError, did_you_mean
from distillery.data.decoding import refuse_colour
from distillery.data.images import EncodedImages
from distillery.data.raw_data import UNLABELLED, RawData, Split
from distillery.data.soft_labels import read_soft_labels
from distillery.data.sources.duplicates import apart
from distillery.data.sources.hub import labels_of, load_splits
from distillery.data.sources.table_splits import in_class_order


@dataclass(frozen=True)
class DatasetPictures:
    """The pictures in some rows of a data set, which stay encoded on the disk until they are opened."""

    data: Dataset
    column: str  # holds `bytes` or a `path` in each row
    rows: Sequence[int]
    where: str

    def __len__(self) -> int:
        return len(self.rows)

    def open(self, position: int) -> tuple[Path | IO[bytes], str]:
        row = self.rows[position]
        picture = self.data[row][self.column]
        if picture["bytes"] is None:
            return Path(picture["path"]), picture["path"]
        return BytesIO(picture["bytes"]), f"{self.where}, row {row} {picture['path'] or ''}".rstrip()

    def sizes(self) -> list[int]:
        """The length of each picture in bytes."""
        column = self.data.data.column(self.column).combine_chunks()
        lengths = pc.binary_length(pc.struct_field(column, "bytes")).to_pylist()
        paths = pc.struct_field(column, "path")
        return [Path(paths[row].as_py()).stat().st_size if lengths[row] is None else lengths[row] for row in self.rows]

    def content(self) -> bytes:
        return repr(self.sizes()).encode()

    def keys(self) -> list[Hashable]:
        """One for each picture; equal if the pictures are, byte for byte. Only those of equal length are read."""
        sizes = self.sizes()
        counts = Counter(sizes)
        return [(size, self._sha256(position)) if counts[size] > 1 else size for position, size in enumerate(sizes)]

    def _sha256(self, position: int) -> str:
        opened, _ = self.open(position)
        return hashlib.sha256(opened.read_bytes() if isinstance(opened, Path) else opened.read()).hexdigest()


def hf_images(
    path: str,
    size: int = 224,
    name: str | None = None,
    image: str = "image",
    label: str = "label",
    train: str = "train",
    val: str | None = "validation",
    test: str | None = "test",
    drop_duplicates: bool = True,
    background: str = "white",
    revision: str | None = None,
    data_files: Mapping[str, Any] | None = None,
    soft_label: str | None = None,
) -> RawData:
    """Images and classes, loaded by `datasets.load_dataset`.

    Without labels in the test split, or without a test split, the validation split becomes the test split; the remarks
    say so. Rows of train without a label are unlabelled images, all of them where only test has a column of labels;
    those of val and test are left out and counted. The classes are those that the data set declares, else the labels
    of the training images (of the test images, if none has one), sorted.

    Args:
        path, name, revision, data_files: arguments of `load_dataset`: a data set of the hub or a folder, its
            configuration, its commit; or "webdataset" (tar files) or "parquet", and the files of each split.
        size: side of the served squares.
        image, label: the columns.
        soft_label: the column of the class probabilities that a teacher gave, see `read_soft_labels`.
        train, val, test: the names of the splits; part of a split is written as "train[:90%]".
        drop_duplicates, background: see `image_folder`.

    Raises:
        UserError: the data set is unavailable or has no such configuration, split or column; a split has a class that
            train lacks; there is only one class.
    """
    refuse_colour(background)
    called = path if name is None else f"{path}/{name}"
    notes: list[str] = []
    names = {"train": train, "val": val, "test": test}
    sets = load_splits(called, path, names, label, notes, name=name, revision=revision, data_files=data_files)
    pictures: dict[str, DatasetPictures] = {}
    labels: dict[str, list[str] | None] = {}
    soft: dict[str, Sequence[Any]] = {}
    classes: Sequence[str] | None = None
    without_labels = label not in sets["train"][0].column_names and label in sets["test"][0].column_names
    if without_labels:
        notes.append(f"train: without a column '{label}', so that none of its pictures has a label")
    for part, (data, where) in sets.items():
        unknown = part == "train" and without_labels
        wanted = {"image": image} if unknown else {"image": image, "label": label}
        if soft_label is not None and part == "train":
            wanted["soft_label"] = soft_label
        for option, column in wanted.items():
            if column not in data.column_names:
                hint = did_you_mean(column, data.column_names)
                if option == "label":
                    hint += " Training images need no labels, but those of the test split do."
                raise UserError(f"data.source.{option}={column}: {where} has no such column.{hint}")
        if soft_label in data.column_names:
            soft[part] = data[soft_label]
        values, declared = ([None] * len(data), None) if unknown else labels_of(data, label)
        classes = classes if unknown else declared
        rows = [row for row, value in enumerate(values) if value is not None]
        encoded = data.select_columns(image).cast_column(image, Image(decode=False))
        pictures[part], labels[part] = DatasetPictures(encoded, image, rows, where), [str(values[row]) for row in rows]
        without = [row for row, value in enumerate(values) if value is None]
        if without and part == "train":
            pictures["unlabelled"], labels["unlabelled"] = replace(pictures[part], rows=without), None
        elif without:
            notes.append(f"{part}: {len(without):,} rows without a label left out")
    keys = {part: own.keys() for part, own in pictures.items()}
    kept = apart(keys, labels, "pictures", drop_duplicates, notes)
    known = tuple(classes) if classes is not None else in_class_order(set(labels["train"] or labels["test"] or ()))
    if len(known) < 2:
        raise UserError(f"'{called}': the labels are all {list(known)}; at least two classes are needed.")
    number = {each: position for position, each in enumerate(known)}
    splits: dict[str, Split] = {}
    unlabelled = pictures.pop("unlabelled", None)
    for part, own in pictures.items():
        given = labels[part] or []
        if foreign := sorted(set(given) - number.keys()):
            hint = did_you_mean(foreign[0], known)
            raise UserError(f"{own.where}: train lacks the class {foreign[0]!r}.{hint}")
        rows, classes_of = [own.rows[position] for position in kept[part]], [number[given[i]] for i in kept[part]]
        labelled = len(rows)
        if part == "train" and unlabelled:
            rows += [unlabelled.rows[position] for position in kept["unlabelled"]]
        targets = torch.tensor(classes_of + [UNLABELLED] * (len(rows) - labelled), dtype=torch.int64)
        images = EncodedImages(replace(own, rows=rows), size, background)
        splits[part] = Split.whole(images, targets, torch.arange(len(rows)) < labelled)
        if part in soft:
            own_soft, place = [soft[part][row] for row in rows], partial(_place, own.where, rows, soft_label)
            splits[part] = replace(splits[part], soft_labels=read_soft_labels(own_soft, known, place))
    return RawData(called, known, splits["train"], splits["test"], splits.get("val"), tuple(notes))


def _place(where: str, rows: Sequence[int], soft_label: str | None, position: int) -> str:
    return f"{where}, row {rows[position]}, data.source.soft_label={soft_label}"
