"""Training samples without a label: where they come from, what their batches say, and what is drawn from the others."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distillery.core.errors import UserError
from distillery.data.raw_data import UNLABELLED, RawData, Split, Texts
from distillery.data.sources.image_folder import image_folder
from distillery.data.sources.text_files import jsonl, text_csv
from distillery.data.text import TextData
from distillery.data.vision import VisionData
from fixtures.datasets import write_image_folder
from fixtures.texts import sentences, text_data, write_csv, write_jsonl, write_tokenizer

KINDS = ("good", "bad")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def texts_of(split: Split) -> tuple[list[str], list[str]]:
    """Those with and those without a label."""
    both = split.labelled_indices.tolist(), split.unlabelled_indices.tolist()
    return tuple([split.inputs.first[at] for at in part] for part in both)


def vision(raw: RawData, **given: Any) -> VisionData:
    defaults = {"batch_size": 4, "eval_batch_size": 8, "seed": 0, "val_size": 0}
    return VisionData(lambda: raw, mean=[0.5] * 3, std=[0.5] * 3, **(defaults | given))


def partly_labelled(number: int, labelled: int) -> RawData:
    """Texts by turns of two classes, of which the first `labelled` have their label; 20 test texts."""
    first = [text for text, _ in sentences(number + 20)]
    targets = torch.arange(number) % 2
    train = Split.whole(Texts(first[:number]), targets, torch.arange(number) < labelled)
    return RawData("texts", KINDS, train, Split.whole(Texts(first[number:]), torch.arange(20) % 2))


def test_texts_without_a_label_and_those_of_another_file(tmp_path: Path) -> None:
    rows = [("a", "x"), ("b", ""), ("c", "y"), ("d", " "), ("t", ""), ("e", "x"), ("a", ""), ("f", "y")]
    path = write_csv(tmp_path / "own.csv", rows)
    more = write_csv(tmp_path / "more.csv", [("g", "x"), ("b", ""), ("v", ""), ("t", ""), ("f", "")])
    test, val = write_csv(tmp_path / "test.csv", [("t", "x")]), write_csv(tmp_path / "val.csv", [("v", "y")])
    data = text_csv(path, test=test, val=val, unlabelled=more)
    assert texts_of(data.train) == (["a", "c", "e", "f"], ["b", "d", "g"])
    assert data.train.targets.tolist() == [0, 1, 0, 1, -1, -1, -1]
    assert data.remarks == (
        "unlabelled: its column 'label' is not read",
        "unlabelled: 2 repeated texts and 0 with contradictory labels left out",
        "unlabelled: 1 texts that are also in test left out",
        "unlabelled: 1 texts that are also in val left out",
        "unlabelled: 2 texts that are also in train left out",
    )
    with pytest.raises(UserError, match=r"'.*own\.csv': column 'label' has no label in 4 rows"):
        text_csv(test, test=path)
    with pytest.raises(UserError, match=r"unlabelled and data\.source\.label=null exclude"):
        text_csv(path, label=None, unlabelled=more)


def test_only_the_test_texts_have_labels(tmp_path: Path) -> None:
    """The case of a transfer set: no label, and no column for one."""
    path = write_csv(tmp_path / "own.csv", [("a",), ("b",), ("c",)], ("text",))
    test = write_csv(tmp_path / "test.csv", [("d", "y"), ("e", "x")])
    data = text_csv(path, test=test)
    assert texts_of(data.train) == ([], ["a", "b", "c"])
    assert data.classes == ("x", "y")
    assert data.remarks == ("train: without a column 'label', so that none of its texts has a label",)
    with pytest.raises(UserError, match=r"label=lable: .*no such column\. Did you mean 'label'"):
        text_csv(path, label="lable", test=test)
    empty = write_csv(tmp_path / "empty.csv", [("a", ""), ("b", "")])
    with pytest.raises(UserError, match=r"no text has a label to test on\. Set data\.source\.test"):
        text_csv(empty)


def test_numbers_and_words_without_labels(tmp_path: Path, tokenizer: str) -> None:
    rows = [{"text": "good", "label": 0.5}, {"text": "bad"}, {"text": "dull", "label": None}]
    path, test = write_jsonl(tmp_path / "own.jsonl", rows), write_jsonl(tmp_path / "test.jsonl", rows[:1])
    train = jsonl(path, regression=True, test=test, test_fraction=0.5).train
    assert train.labelled_indices.tolist() == []  # it is in test, too
    assert train.targets.isnan().tolist() == [True, True]
    words = [
        {"words": ["a", "film"], "tags": ["D", "N"]},
        {"words": ["the", "plots", "cold"], "tags": []},
        {"words": ["it"]},
    ]
    path, test = write_jsonl(tmp_path / "words.jsonl", words), write_jsonl(tmp_path / "t.jsonl", [words[0]])
    raw = jsonl(path, words="words", label="tags", test=test)
    assert texts_of(raw.train) == ([], [["the", "plots", "cold"], ["it"]])
    raw = RawData("words", raw.classes, _with_one_labelled(raw), raw.test)
    data = TextData(lambda: raw, tokenizer, batch_size=3, eval_batch_size=3, seed=0, val_size=0)
    batch = next(iter(data.train_dataloader()))
    rows = dict(zip(batch["index"].tolist(), batch["target"].tolist(), strict=True))
    assert rows[0] == [-100, -1, -1, -100, -1, -100]  # [CLS] the plot ##s cold [SEP]
    assert rows[2][:4] == [-100, 0, 1, -100]
    assert batch["labelled"].tolist() == [index == 2 for index in batch["index"]]


def _with_one_labelled(raw: RawData) -> Split:
    texts = raw.train.inputs
    joined = Texts([*texts.first, ["a", "film"]], labels=[*texts.labels, [0, 1]])
    return Split.whole(joined, torch.zeros(3, dtype=torch.int64), torch.tensor([False, False, True]))


def test_validation_test_and_subsets_are_drawn_from_the_labelled_ones(tmp_path: Path, tokenizer: str) -> None:
    rows = [(f"text {number}", KINDS[number % 2] if number < 40 else "") for number in range(100)]
    path = write_csv(tmp_path / "own.csv", rows)
    data = text_data(tokenizer, text_csv(path), val_size=0.25, train_size=10)
    assert data.sizes == {"train": 70, "val": 8, "test": 8}
    assert (data.labelled, data.unlabelled) == (10, 60)
    for stage in ("val", "test"):
        assert (data.splits[stage].targets[data.splits[stage].indices] >= 0).all()
        assert all("labelled" not in batch for batch in getattr(data, f"{stage}_dataloader")())
    assert "train: 10 labelled and 60 unlabelled samples" in data.remarks
    served = list(data.train_dataloader())
    for batch in served:
        assert ((batch["target"] == -1) == ~batch["labelled"]).all()
    assert sum(batch["labelled"].sum() for batch in served) == 10
    whole = text_data(tokenizer, text_csv(path), train_size=24, val_size=0.25)
    assert whole.labelled == 24
    for given, message in (
        ({"train_size": 33}, r"train_size=33: Cannot draw 33 of 32 samples"),
        ({"val_size": 32}, "leaves none of 32 labelled samples"),
        ({"labelled_share": 1.5}, r"labelled_share=1.5 is not in \(0, 1\]"),
        ({"train_size": 2, "labelled_share": 0.5}, "asks for 4 labelled samples in a batch of 8, and only 2 are"),
    ):
        with pytest.raises(UserError, match=message):
            text_data(tokenizer, text_csv(path), **given).splits  # noqa: B018


def test_labels_can_be_hidden(tokenizer: str) -> None:
    raw = partly_labelled(50, 50)
    data = text_data(tokenizer, raw, labelled_size=6)
    assert (data.sizes["train"], data.labelled, data.unlabelled) == (50, 6, 44)
    assert data.splits["train"].targets[data.splits["train"].labelled_indices].bincount().tolist() == [3, 3]
    assert raw.train.targets.min() == 0  # those of the data set stay
    other = text_data(tokenizer, raw, labelled_size=6, seed=1)
    assert other.splits["train"].labelled_indices.tolist() != data.splits["train"].labelled_indices.tolist()
    every = text_data(tokenizer, raw, labelled_size=50)
    assert every.unlabelled == 0
    assert "labelled" not in next(iter(every.train_dataloader()))
    assert text_data(tokenizer, raw, labelled_size=6, mask=0.15).unlabelled == 0  # masked tokens are the labels


def test_the_share_of_labelled_samples_in_a_batch(tokenizer: str) -> None:
    raw = partly_labelled(46, 6)
    mixed = text_data(tokenizer, raw, labelled_share=0.25)
    batches = list(mixed.train_dataloader())
    assert [int(batch["labelled"].sum()) for batch in batches] == [2] * 7
    unlabelled = [int(i) for batch in batches for i in batch["index"][~batch["labelled"]]]
    assert sorted(unlabelled) == list(range(6, 46))
    assert "each batch has 2 labelled samples (data.labelled_share), repeated as needed" in mixed.remarks
    as_they_come = text_data(tokenizer, raw)
    assert any("with data.labelled_share=0.5 half of it are" in remark for remark in as_they_come.remarks)
    alone = text_data(tokenizer, raw, labelled_share=1.0)
    for data in (alone, as_they_come.labelled_alone()):
        assert (data.sizes["train"], data.unlabelled) == (6, 0)
        assert len(list(data.train_dataloader())) == len(list(as_they_come.train_dataloader())) == data.batches(1)
        assert all(sorted(batch["index"].tolist()) == list(range(6)) for batch in data.train_dataloader())
        assert data.fingerprint == as_they_come.fingerprint
        assert any("40 unlabelled samples left out" in remark for remark in data.remarks)
    assert len(list(mixed.labelled_alone().train_dataloader())) == 7


def test_a_folder_of_pictures_without_a_label(tmp_path: Path) -> None:
    write_image_folder(tmp_path, {"train": 6, "test": 4, "more": 3}, shape=(28, 28))
    (tmp_path / "more").rename(tmp_path / "Unlabeled")  # with folders in it
    train = sorted((tmp_path / "train").rglob("*.png"))
    for number, path in enumerate([train[0], sorted((tmp_path / "test").rglob("*.png"))[0]]):
        (tmp_path / "Unlabeled" / f"{number}.png").write_bytes(path.read_bytes())
    (tmp_path / "Unlabeled" / "notes.txt").write_text("none")
    raw = image_folder(tmp_path, size=28)
    assert raw.train.targets.tolist() == [0] * 6 + [1] * 6 + [2] * 6 + [-1] * 9
    assert raw.train.unlabelled_indices.tolist() == list(range(18, 27))
    assert raw.remarks == (
        "unlabelled: 1 files that are no pictures left out (1 .txt)",
        "unlabelled: 1 pictures that are also in test left out",
        "unlabelled: 1 pictures that are also in train left out",
    )
    data = vision(raw, val_size=3)
    assert data.sizes == {"train": 24, "val": 3, "test": 12}
    batch = next(iter(data.train_dataloader()))
    assert ((batch["target"] == -1) == ~batch["labelled"]).all()
    elsewhere = raw.train.inputs.batch(torch.arange(18, 27), None, 0, 0)
    alone = image_folder(tmp_path / "Unlabeled", size=28, test_fraction=0.4)
    assert sorted(elsewhere.sum((1, 2, 3)).tolist()) == sorted(
        alone.train.inputs.batch(torch.arange(9), None, 0, 0).sum((1, 2, 3)).tolist()
    )
    with pytest.raises(UserError, match=r"unlabelled=.*holds unlabelled pictures, too"):
        image_folder(tmp_path, unlabelled=tmp_path / "train")


def test_other_places_of_unlabelled_pictures(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "own", {"": 5}, shape=(28, 28))
    write_image_folder(tmp_path / "own", {"unlabelled": 2}, shape=(30, 28))
    raw = image_folder(tmp_path / "own", size=28)
    assert (raw.classes, len(raw.train.labelled_indices), len(raw.test.indices)) == (("ant", "bee", "cat"), 12, 3)
    assert len(raw.train.unlabelled_indices) == 6
    (tmp_path / "own" / "unlabelled").rename(tmp_path / "other")
    same = image_folder(tmp_path / "own", size=28, unlabelled=tmp_path / "other")
    assert same.train.targets.tolist() == raw.train.targets.tolist()
    (tmp_path / "empty").mkdir()
    for folder, message in (("none", "there is no such folder"), ("empty", r"unlabelled pictures has none \(\.avif")):
        with pytest.raises(UserError, match=message):
            image_folder(tmp_path / "own", size=28, unlabelled=tmp_path / folder)
    write_image_folder(tmp_path / "test only", {"test": 2, "unlabelled": 3}, shape=(28, 28))
    raw = image_folder(tmp_path / "test only", size=28)
    assert (len(raw.train.labelled_indices), len(raw.train.unlabelled_indices), len(raw.test.indices)) == (0, 9, 6)
    assert vision(raw).labelled == 0


def test_classes_that_are_served_equally_often(tokenizer: str) -> None:
    raw = partly_labelled(30, 12)
    targets = torch.tensor([0] * 9 + [1] * 3 + [UNLABELLED] * 18)  # of the labelled ones a quarter is bad
    data = text_data(tokenizer, replace(raw, train=replace(raw.train, targets=targets)), balanced=True)
    assert "train: 2 classes, each about 6 times an epoch (data.balanced)" in data.remarks
    batches = list(data.train_dataloader())
    found = torch.cat([batch["target"] for batch in batches])
    assert (found + 1).bincount().tolist() == [18, 6, 6]
    assert torch.cat([batch["target"] for batch in data.test_dataloader()]).bincount().tolist() == [10, 10]
    for other in (replace(raw.train, targets=torch.rand(30)), replace(raw.train, targets=torch.zeros(30).long())):
        with pytest.raises(UserError, match=r"data\.balanced=true .*'texts' do not have one of several classes"):
            text_data(tokenizer, replace(raw, train=other), balanced=True).train_dataloader()
