"""Samples with any number of labels: texts in tables, and images that a table lists."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Sequence as Listed

from distillery.core.errors import UserError
from distillery.data.raw_data import RawData, Split
from distillery.data.sources.hf_dataset import hf_dataset
from distillery.data.sources.image_labels import image_labels
from distillery.data.sources.text_files import jsonl, text_csv
from distillery.data.vision import VisionData
from fixtures.datasets import write_image_folder

LABELS = ("act", "art", "war")


def named(data: RawData, split: Split) -> list[set[str] | None]:
    """The labels of each sample, in order; None: unknown."""
    rows = split.targets[split.indices]
    assert rows.dtype == torch.float32
    return [
        None if row.isnan().all() else {name for name, one in zip(data.classes, row, strict=True) if one}
        for row in rows
    ]


def write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.fixture
def test_file(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "test.csv", [("text", "label"), ("g", "war|act"), ("h", "[]")])


def test_labels_of_texts_are_lists_or_separated(tmp_path: Path, test_file: Path) -> None:
    rows = [
        ("text", "label"),
        ("a", "act|war"),
        ("b", "art"),
        ("c", '["war", "art"]'),
        ("d", "[]"),
        ("e", ""),
        ("f", " act | act "),
    ]
    data = text_csv(write_csv(tmp_path / "own.csv", rows), test=test_file, multi_label=True)
    assert data.classes == LABELS
    assert [data.train.inputs.first[i] for i in data.train.indices] == ["a", "b", "c", "d", "f", "e"]
    assert named(data, data.train) == [{"act", "war"}, {"art"}, {"war", "art"}, set(), {"act"}, None]
    assert data.train.labelled is not None
    assert data.train.labelled.tolist() == [True] * 5 + [False], "the unlabelled one follows"
    assert named(data, data.test) == [{"war", "act"}, set()]
    commas = [("text", "label"), *((text, label.replace("|", ",")) for text, label in rows[1:3])]
    path = write_csv(tmp_path / "commas.csv", commas)
    test_file.write_text(test_file.read_text().replace("war|act", '"war,act"'))
    assert named(data, text_csv(path, test=test_file, multi_label=True, label_separator=",", classes=LABELS).train) == [
        {"act", "war"},
        {"art"},
    ]


def test_labels_in_json_lines(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": str(number), "label": [[1, 2], [], [2]][number % 3]} for number in range(30)]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": "x", "label": None}]))
    data = jsonl(path, multi_label=True)
    assert data.classes == ("1", "2")
    both = [*named(data, data.train), *named(data, data.test)]
    assert sorted(map(str, both)) == sorted(map(str, [{"1", "2"}, set(), {"2"}] * 10 + [None]))
    assert len(data.test.indices) == 6


def test_labels_of_a_hub_data_set_have_their_declared_names(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "labels": Listed(ClassLabel(names=["joy", "fear", "love"]))})
    parts = {
        "train": Dataset.from_dict({"text": ["a", "b", "c"], "labels": [[2, 0], [], [0]]}, features),
        "validation": Dataset.from_dict({"text": ["d"], "labels": [[1]]}, features),
        "test": Dataset.from_dict({"text": ["e"], "labels": [[0, 1]]}, features),
    }
    for part, each in parts.items():
        each.to_parquet(tmp_path / f"{part}.parquet")
    files = {part: str(tmp_path / f"{part}.parquet") for part in parts}
    data = hf_dataset("parquet", text="text", label="labels", data_files=files, multi_label=True)
    assert data.classes == ("joy", "fear", "love")
    assert named(data, data.train) == [{"love", "joy"}, set(), {"joy"}]
    assert data.val is not None
    assert (named(data, data.val), named(data, data.test)) == ([{"fear"}], [{"joy", "fear"}])
    assert DatasetDict(parts)["train"][0]["labels"] == [2, 0]


@pytest.mark.parametrize(
    ("rows", "given", "message"),
    [
        ([("a", "act"), ("b", "")], {"test": True}, r"has no label .*A list without labels is written as \[\]"),
        ([("a", '["act"'), ("b", "war")], {}, r"is not a list of labels"),
        ([("a", "act"), ("b", "war")], {"regression": True}, r"multi_label and data\.source\.regression exclude"),
        ([("a", "act|wa"), ("b", "war")], {"classes": ["act", "war"]}, r"'wa' \(1\)\. Did you mean 'war'"),
    ],
)
def test_what_is_refused(rows: list[Any], given: dict[str, Any], message: str, tmp_path: Path, test_file: Path) -> None:
    path = write_csv(tmp_path / "own.csv", [("text", "label"), *rows])
    train, test = (test_file, path) if given.pop("test", False) else (path, test_file)
    with pytest.raises(UserError, match=message):
        text_csv(train, test=test, multi_label=True, **given)


def test_lists_of_labels_without_the_setting_name_it(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text(json.dumps({"text": "a", "label": ["x", "y"]}) + "\n")
    with pytest.raises(UserError, match=r"has more than one label .*task=multi_label data\.source\.multi_label=true"):
        jsonl(tmp_path / "own.jsonl")


# Images


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """30 pictures, three of them in each of the folders ant, bee and cat of ten parts."""
    write_image_folder(tmp_path, {"all": 10}, shape=(8, 8))
    return tmp_path


def listed(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))


def test_images_have_the_labels_and_splits_that_the_table_says(pictures: Path) -> None:
    files = listed(pictures)
    labels = ["act|war", "art", "", "[]"]
    splits = ["train", "train", "train", "valid", "test"]
    rows = [(file, labels[n % 4] if splits[n % 5] == "train" else "war", splits[n % 5]) for n, file in enumerate(files)]
    write_csv(pictures / "labels.csv", [("file", "labels", "part"), *rows])
    data = image_labels(pictures, split="part", size=8)
    assert data.classes == LABELS
    assert data.val is not None
    assert [len(split.targets) for split in (data.train, data.val, data.test)] == [18, 6, 6]
    wanted = {file: label for file, label, split in rows if split == "train"}
    for position, own in enumerate(named(data, data.train)):
        label = wanted[data.train.inputs.pictures.path(position).relative_to(pictures).as_posix()]
        assert own == (None if not label else set() if label == "[]" else set(label.split("|")))
    assert named(data, data.test) == [{"war"}] * 6


def test_images_are_served_with_their_targets(pictures: Path) -> None:
    rows = [(file, "ant|animal" if "ant" in file else "animal") for file in listed(pictures)]
    write_csv(pictures / "labels.csv", [("file", "labels"), *rows])
    data = VisionData(
        lambda root: image_labels(root, size=8),
        root=str(pictures),
        batch_size=4,
        eval_batch_size=4,
        seed=0,
        mean=[0.5] * 3,
        std=[0.5] * 3,
    )
    assert data.multi_label
    assert data.sizes == {"train": 22, "val": 2, "test": 6}
    batch = next(iter(data.train_dataloader()))
    assert batch["target"].shape == (4, 2)
    files = data.raw.train.inputs.pictures
    for index, target in zip(batch["index"].tolist(), batch["target"].tolist(), strict=True):
        assert target == [1.0, float("ant" in str(files.path(index)))]
    assert [remark for remark in data.remarks if "no sample" in remark] == []


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("all/ant/0000.png", "x"), ("all/ant/9999.png", "y")], r"line 3: there is no picture '.*9999\.png'"),
        ([("all/ant/0000.png", "x"), ("all/ant/0000.png", "y")], r"lists a picture twice: all/ant/0000\.png"),
    ],
)
def test_refused_tables_of_images(rows: list[Any], message: str, pictures: Path) -> None:
    write_csv(pictures / "labels.csv", [("file", "labels"), *rows])
    with pytest.raises(UserError, match=message):
        image_labels(pictures)
