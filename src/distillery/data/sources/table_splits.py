"""Turns tables of texts into splits: without duplicates, disjoint, with numbered labels."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from distillery.core.errors import UserError, did_you_mean
from distillery.data.raw_data import UNLABELLED, RawData, Split, Texts
from distillery.data.soft_labels import read_soft_labels
from distillery.data.sources.duplicates import apart
from distillery.data.sources.table import SHOWN, Columns, Samples, Table, class_remarks, read_samples
from distillery.data.stored_texts import stored


def table_data(
    name: str,
    columns: Columns,
    tables: Mapping[str, Table],
    test_fraction: float = 0.0,
    drop_duplicates: bool = True,
    remarks: Sequence[str] = (),
) -> RawData:
    """The splits of `tables`, whose names are train, val, test and unlabelled; only train is required.

    Texts of train without a label, and those of `unlabelled`, are unlabelled training texts: they follow the labelled
    ones. Without test, `test_fraction` of train's labelled texts becomes the test split, drawn by class and always the
    same.
    `drop_duplicates` leaves out repeated texts (all copies if their labels differ), texts of val that are also in
    test, texts of train that are also in val or test, and unlabelled texts that are also in any of them; without it
    they are only counted. An index is a position among the texts that remain.

    Raises:
        UserError: what `read_samples` refuses, a label outside the classes, fewer than two classes, or an empty split.
    """
    notes = list(remarks)
    tables = _with_soft_labels(_with_label_column(tables, columns, notes), columns, notes)
    parts: dict[str, Samples] = {}
    for part, table in tables.items():
        parts[part], empty = read_samples(table, columns, need_labels=part not in ("train", "unlabelled"))
        notes += table.notes
        if empty:
            notes.append(f"{part}: {empty:,} rows with an empty text left out")
    parts = _unlabelled_apart(parts)
    if not parts["train"] and "test" not in parts:
        raise UserError(
            f"{parts['train'].where}: no text has a label to test on. Set data.source.test to a labelled file."
        )
    keys = {part: samples.keys() for part, samples in parts.items()}
    labels = {part: None if part == "unlabelled" else samples.labels for part, samples in parts.items()}
    kept = apart(keys, labels, "texts", drop_duplicates, notes)
    parts = {part: samples.take(kept[part]) for part, samples in parts.items()}
    unlabelled = parts.pop("unlabelled", None)
    for part, samples in parts.items():
        if not samples and not (part == "train" and unlabelled):
            raise UserError(f"{samples.where} has no text left for the {part} split. " + ". ".join(notes))
    classes = classes_of(columns, parts["train"] or parts["test"])
    notes += class_remarks(columns, classes, len(parts["train"] or parts["test"]))
    splits = {part: _split(samples, columns, classes) for part, samples in parts.items()}
    if unlabelled:
        splits["train"] = _followed_by(splits["train"], unlabelled, _soft_labels(unlabelled, columns, classes))
    if "test" not in splits:
        splits["train"], splits["test"] = cut(splits["train"], test_fraction)
        notes.append(f"test: {len(splits['test'].indices):,} texts drawn from train, always the same ones")
    return RawData(name, classes, splits["train"], splits["test"], splits.get("val"), tuple(notes))


def _with_label_column(tables: Mapping[str, Table], columns: Columns, notes: list[str]) -> dict[str, Table]:
    """The tables, with an empty column of labels for unlabelled texts."""
    name = columns.label
    found = dict(tables)
    if name is None:
        if "unlabelled" in tables:
            raise UserError(
                "data.source.unlabelled and data.source.label=null exclude each other: no text has a label."
            )
        return found
    if name not in tables["train"].columns and "test" in tables:
        tables["test"].column("label", name)  # refused if it is nowhere
        found["train"] = tables["train"].with_column(name, None)
        notes.append(f"train: without a column '{name}', so that none of its texts has a label")
    if "unlabelled" in tables:
        found["unlabelled"] = tables["unlabelled"].with_column(name, None)
        if name in tables["unlabelled"].columns:
            notes.append(f"unlabelled: its column '{name}' is not read")
    return found


def _with_soft_labels(tables: Mapping[str, Table], columns: Columns, notes: list[str]) -> dict[str, Table]:
    """The tables, with empty columns of soft labels for splits that lack them; train must have them."""
    given = columns.soft_label
    names = [] if given is None else [given] if isinstance(given, str) else list(given.values())
    found = dict(tables)
    for part, table in tables.items():
        if part != "train" and names and not table.columns.keys() & set(names):
            notes.append(f"{part}: without soft labels ({', '.join(names)})")
            for name in names:
                found[part] = found[part].with_column(name, None)
    return found


def _unlabelled_apart(parts: Mapping[str, Samples]) -> dict[str, Samples]:
    """The parts, with the texts of train that have no label among those of `unlabelled`, if there are any."""
    train, found = parts["train"], dict(parts)
    if train.labels is None:
        return found
    found["train"] = train.take([row for row, label in enumerate(train.labels) if label is not None])
    without = train.take([row for row, label in enumerate(train.labels) if label is None])
    if without and "unlabelled" in parts:
        found["unlabelled"] = without.followed_by(parts["unlabelled"])
    elif without:
        found["unlabelled"] = without
    return found


def _followed_by(train: Split, unlabelled: Samples, soft_labels: Tensor | None) -> Split:
    """The training split with unlabelled texts after the labelled ones."""
    texts: Texts = train.inputs
    first, count = unlabelled.columns["first"], len(unlabelled)
    joined = Texts(
        [*texts.first, *first],
        None if texts.second is None else [*texts.second, *unlabelled.columns["second"]],
        None if texts.labels is None else [*texts.labels, *([UNLABELLED] * len(words) for words in first)],
    )
    targets = torch.cat([train.targets, train.targets.new_zeros(count, *train.targets.shape[1:])])
    whole = Split.whole(joined, targets, torch.arange(len(targets)) < len(train.targets))
    if train.soft_labels is None or soft_labels is None:
        return whole
    return replace(whole, soft_labels=torch.cat([train.soft_labels, soft_labels]))


def classes_of(columns: Columns, train: Samples) -> tuple[str, ...]:
    """The classes, or labels, of these samples in order; none of a regression. Raises UserError: too few."""
    if train.labels is None or columns.regression:
        return ()
    if columns.classes is None:
        classes = in_class_order({label for labels in train.labels for label in _each(labels)})
    else:
        classes = tuple(map(str, columns.classes))
        if len(set(classes)) != len(classes):
            raise UserError(f"data.source.classes={list(classes)} names a class twice.")
    if len(classes) < (1 if columns.multi_label else 2):
        raise UserError(f"{train.where}: the labels are all {list(classes)}; at least two classes are needed.")
    return classes


def _each(labels: Any) -> Sequence[str]:
    """The labels of one text: its own, or those of its words."""
    return (labels,) if isinstance(labels, str) else labels


def in_class_order(labels: Collection[str]) -> tuple[str, ...]:
    """Whole numbers by value, equal ones such as 01 and 1 by text; if any label is not a number, all by text."""
    try:
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    except ValueError:
        return tuple(sorted(labels))


def _split(samples: Samples, columns: Columns, classes: Sequence[str]) -> Split:
    split = Split.whole(*_encode(samples, columns, classes))
    return replace(split, soft_labels=_soft_labels(samples, columns, classes))


def _soft_labels(samples: Samples, columns: Columns, classes: Sequence[str]) -> Tensor | None:
    if "soft" not in samples.columns:
        return None

    def where(row: int) -> str:
        return f"{samples.where}, {samples.unit} {samples.lines[row]}, data.source.soft_label={columns.soft_label}"

    return read_soft_labels(samples.columns["soft"], classes, where)


def _encode(samples: Samples, columns: Columns, classes: Sequence[str]) -> tuple[Texts, Tensor]:
    first, second, zeros = samples.columns["first"], samples.columns.get("second"), torch.zeros(len(samples)).long()
    if samples.labels is None:
        return Texts(stored(first), second), zeros
    texts = Texts(first, second)
    if columns.regression:
        return texts, torch.tensor(samples.labels, dtype=torch.float32)
    number = {label: position for position, label in enumerate(classes)}
    _refuse_foreign(samples, samples.labels, number)
    if columns.multi_label:
        return texts, label_matrix(samples.labels, classes)
    if columns.words is not None:
        return Texts(first, labels=[[number[tag] for tag in tags] for tags in samples.labels]), zeros
    return texts, torch.tensor([number[label] for label in samples.labels], dtype=torch.int64)


def label_matrix(labels: Sequence[Sequence[str] | None], classes: Sequence[str]) -> Tensor:
    """1 for each label of a sample, else 0, float32 [N, C]; NaN where a sample's labels are unknown."""
    known = {name: number for number, name in enumerate(classes)}
    rows = torch.zeros(len(labels), len(classes))
    for row, own in enumerate(labels):
        rows[row, [known[name] for name in own or ()]] = 1.0
        if own is None:
            rows[row] = torch.nan
    return rows


def _refuse_foreign(samples: Samples, labels: Sequence[Any], classes: Mapping[str, int]) -> None:
    foreign: dict[str, list[int]] = {}
    for row, own in enumerate(labels):
        for label in _each(own):
            if label not in classes:
                foreign.setdefault(label, []).append(row)
    if foreign:
        rows = sorted({row for found in foreign.values() for row in found})
        shown = ", ".join(f"{label!r} ({len(found):,})" for label, found in list(foreign.items())[:SHOWN])
        raise UserError(
            f"{samples.where}: labels outside the {len(classes)} classes in {samples.places(rows)}: "
            f"{shown}{', …' if len(foreign) > SHOWN else ''}.{did_you_mean(next(iter(foreign)), classes)}"
        )


def cut(train: Split, fraction: float) -> tuple[Split, Split]:
    """Cut one split into (train, test): by class, or at random where the targets are not classes."""
    if not 0 < fraction < 1:
        raise UserError(
            f"data.source.test_fraction={fraction} is not between 0 and 1, and there is no test file: set "
            "data.source.test, or the fraction of the texts to test on."
        )
    try:
        test, rest = train.divided(round(fraction * len(train.labelled_indices)))
    except UserError as error:
        raise UserError(f"data.source.test_fraction={fraction}: {error}") from error
    if not len(rest.labelled_indices):
        count = len(train.labelled_indices)
        raise UserError(f"data.source.test_fraction={fraction} leaves none of {count} labelled texts to train on.")
    return rest, test
