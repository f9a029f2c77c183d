"""Hub data sets, through the builders of `datasets` for local files: no network."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from distillery.core.errors import UserError
from distillery.data.raw_data import Split
from distillery.data.sources.hf_dataset import hf_dataset

Rows = Sequence[Mapping[str, Any]]
Write = Callable[..., str]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No cache of the machine is read or written, nor the hub asked."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture
def glue(tmp_path: Path) -> Write:
    """Writes a folder of parquet files which declare classes, as those of GLUE on the hub."""

    def write(label: Any = None, **splits: Rows) -> str:
        folder = tmp_path / "glue"
        folder.mkdir()
        for split, rows in splits.items():
            data = datasets.Dataset.from_list(list(rows))
            if label is not None:
                data = data.cast_column("label", label)
            data.to_parquet(str(folder / f"{split}.parquet"))
        return str(folder)

    return write


CLASSES = datasets.ClassLabel(names=["unacceptable", "acceptable"])
TRAIN = [{"sentence": f"train {i}", "label": i % 2, "idx": i} for i in range(8)]
VAL = [{"sentence": f"val {i}", "label": (i + 1) % 2, "idx": i} for i in range(4)]
TEST = [{"sentence": f"test {i}", "label": 1 - i % 2, "idx": i} for i in range(3)]
HIDDEN = [{"sentence": f"test {i}", "label": -1, "idx": i} for i in range(3)]


def served(split: Split) -> list[tuple[str, int]]:
    assert split.indices.tolist() == list(range(len(split.inputs)))
    return list(zip(split.inputs.first, split.targets.tolist(), strict=True))


def expected(rows: Rows) -> list[tuple[str, int]]:
    return [(row["sentence"], row["label"]) for row in rows]


def test_three_splits_and_declared_classes(glue: Write) -> None:
    data = hf_dataset(glue(CLASSES, train=TRAIN, validation=VAL, test=TEST))
    assert data.classes == ("unacceptable", "acceptable")
    assert data.val is not None
    assert served(data.train) == expected(TRAIN)
    assert served(data.val) == expected(VAL)
    assert served(data.test) == expected(TEST)
    assert data.remarks == ()


def test_hidden_test_labels_make_the_validation_split_the_test_split(glue: Write) -> None:
    path = glue(CLASSES, train=TRAIN, validation=VAL, test=HIDDEN)
    data = hf_dataset(path)
    assert data.val is None
    assert served(data.test) == expected(VAL)
    assert served(data.train) == expected(TRAIN)
    assert "labels of its test split are hidden: its split validation is the test split" in data.remarks[0]
    with pytest.raises(UserError, match=r"no labelled samples to test on: .*train\[:90%\]"):
        hf_dataset(path, val=None)
    again = hf_dataset(path, test=None)
    assert served(again.test) == expected(VAL)
    assert "data.source.test is null" in again.remarks[0]


def test_hidden_numbers(glue: Write) -> None:
    """As STS-B: pairs, scored from 0 to 5, those of the test split given as -1."""
    splits = {
        split: [{"sentence1": f"{split} {i}", "sentence2": f"b {i}", "label": score} for i, score in enumerate(scores)]
        for split, scores in {"train": [0.0, 2.5, 5.0], "validation": [-1.0, 3.2], "test": [-1.0, -1.0]}.items()
    }
    data = hf_dataset(glue(**splits), text="sentence1", second="sentence2", regression=True)
    assert data.classes == ()
    assert data.train.targets.dtype == torch.float32
    assert data.train.targets.tolist() == [0.0, 2.5, 5.0]
    assert data.test.targets.tolist() == pytest.approx([-1.0, 3.2])
    assert data.test.inputs.second == ["b 0", "b 1"]


def test_rows_without_a_label_are_unlabelled_in_train_and_left_out_elsewhere(glue: Write) -> None:
    """As SNLI, where the annotators of some pairs did not agree."""
    train = [*TRAIN[:3], {"sentence": "nobody knows", "label": -1, "idx": 0}, *TRAIN[3:]]
    test = [{"sentence": "nor this", "label": -1, "idx": 0}, *TEST]
    data = hf_dataset(glue(CLASSES, train=train, validation=VAL, test=test))
    assert served(data.train) == [*expected(TRAIN), ("nobody knows", -1)]
    assert data.train.unlabelled_indices.tolist() == [len(TRAIN)]
    assert served(data.test) == expected(TEST)
    assert data.test.labelled is None
    assert data.remarks == ("test: 1 rows without a label left out",)


def test_duplicates_are_left_out_or_only_counted(glue: Write) -> None:
    path = glue(CLASSES, train=[*TRAIN, TRAIN[0], VAL[1]], validation=VAL, test=TEST)
    data = hf_dataset(path)
    assert served(data.train) == expected(TRAIN)
    assert data.remarks == (
        "train: 1 repeated texts and 0 with contradictory labels left out",
        "train: 1 texts that are also in val left out",
    )
    data = hf_dataset(path, drop_duplicates=False)
    assert served(data.train) == expected([*TRAIN, TRAIN[0], VAL[1]])
    assert data.remarks[1] == "train: 1 texts that are also in val found and kept"


def test_files_of_one_kind_and_parts_of_a_split(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"text": f"t{i}", "label": 10 - i % 3}) + "\n" for i in range(10)))
    data = hf_dataset(
        "json", text="text", data_files={"train": str(path)}, train="train[:7]", val=None, test="train[7:]"
    )
    assert data.classes == ("8", "9", "10")
    assert data.train.inputs.first == [f"t{i}" for i in range(7)]
    assert data.test.inputs.first == ["t7", "t8", "t9"]
    assert data.test.targets.tolist() == [1, 0, 2]


def test_words_of_a_csv_file_are_no_missing_values(tmp_path: Path) -> None:
    words = ["none", "null", "NA", "nan"]
    rows = [f"{'' if row == 5 else words[row % 4]}{row},{words[row % 4] if row else ''}" for row in range(12)]
    for part in ("train", "test"):
        lines = [f"null,{words[0]}", *rows] if part == "test" else rows
        (tmp_path / f"{part}.csv").write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    files = {part: str(tmp_path / f"{part}.csv") for part in ("train", "test")}
    data = hf_dataset("csv", text="text", data_files=files, val=None, drop_duplicates=False)
    assert data.classes == ("NA", "nan", "none", "null")
    assert [data.train.inputs.first[at] for at in data.train.unlabelled_indices] == ["none0"]
    assert data.test.inputs.first[0] == "null"


def test_words_with_a_label_each(glue: Write) -> None:
    rows = [{"tokens": ["Ann", "sings"], "label": [1, 0]}, {"tokens": ["No"], "label": [0]}]
    tags = datasets.List(datasets.ClassLabel(names=["O", "B-PER"]))
    data = hf_dataset(glue(tags, train=rows, test=[{"tokens": ["Bo"], "label": [1]}]), words="tokens", val=None)
    assert data.classes == ("O", "B-PER")
    assert data.train.inputs.labels == [[1, 0], [0]]
    assert data.test.inputs.first == [["Bo"]]


def test_plain_texts(glue: Write) -> None:
    path = glue(**{part: [{"text": f"{part} {i}"} for i in range(3)] for part in ("train", "validation", "test")})
    data = hf_dataset(path, text="text", label=None)
    assert data.classes == ()
    assert data.train.targets.tolist() == [0, 0, 0]


def test_wrong_names(glue: Write) -> None:
    path = glue(CLASSES, train=TRAIN, validation=VAL, test=TEST)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"text": "sentences"}, r"text=sentences: '.*glue', split train has no such column\. Did you mean 'sentence'"),
        ({"second": "idy"}, r"data\.source\.second=idy: .*'idx'"),
        ({"label": "labels"}, r"data\.source\.label=labels: .*'label'"),
        ({"name": "sst3"}, r"glue/sst3' cannot be loaded: .*'sst3' not found\. Available: \['default'\]"),
        ({"val": "dev"}, r"cannot be loaded: .*dev.*\['train', 'validation', 'test'\].*val=null"),
    ]
    for options, words in cases:
        with pytest.raises(UserError, match=words):
            hf_dataset(path, **options)


def test_an_empty_text_is_named_by_its_row(glue: Write) -> None:
    path = glue(CLASSES, train=[*TRAIN, {"sentence": " ", "label": 1, "idx": 8}], validation=VAL, test=TEST)
    with pytest.raises(UserError, match=r"split train: the text is empty in 1 row \(row 8\)"):
        hf_dataset(path)
    assert served(hf_dataset(path, drop_empty=True).train) == expected(TRAIN)


def test_offline_names_the_cache_and_the_flag(own_cache: Path) -> None:
    with pytest.raises(UserError, match=r"load_dataset\('nyu-mll/glue', 'sst2'\).*HF_HOME.*HF_HUB_OFFLINE=1") as caught:
        hf_dataset("nyu-mll/glue", "sst2")
    assert str(own_cache) in str(caught.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere' cannot be loaded"):
        hf_dataset(str(tmp_path / "nowhere"))
