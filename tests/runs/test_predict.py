"""distill-predict: what it writes is what the evaluation of the run predicts for the same inputs."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import softmax

from distillery.commands import predict
from distillery.data.images import TensorImages
from distillery.data.unseen import FittedPictures, NamedPictures
from distillery.models.evaluation_mode import evaluating
from distillery.runs.predict import predict_files
from distillery.runs.run import train
from distillery.runs.verify_run import rebuilt
from fixtures.command_line import Command
from fixtures.datasets import write_image_folder
from fixtures.runs import config
from fixtures.texts import bert_overrides, sentences, write_csv, write_jsonl, write_tokenizer

CLASSES = ["ant", "bee", "cat"]


def logits_of_run(folder: Path) -> NDArray[np.float32]:
    """Of the test split in the order of its samples, by the code that `distill-evaluate` rebuilds a run with."""
    _, student, data, _ = rebuilt(folder, "test")
    with evaluating(student):
        batches = [(batch["index"], student(batch).logits) for batch in data.test_dataloader()]
    index, logits = (torch.cat(each) for each in zip(*batches, strict=True))
    return logits[index.argsort()].numpy()


@pytest.fixture
def test_pictures(pictures: Path, tmp_path: Path) -> Path:
    """The test pictures of the run, in a folder of their own."""
    write_image_folder(tmp_path / "again", {"train": 12, "val": 4, "test": 4}, shape=(8, 8))
    return tmp_path / "again" / "test"


def test_pictures_are_predicted_as_in_the_evaluation(pictures: Path, test_pictures: Path, command: Command) -> None:
    answer = command(predict, f"run='{pictures}'", "top=all", str(test_pictures))
    assert (answer.code, answer.err) == (0, "")
    table = pd.read_csv(io.StringIO(answer.out))
    assert table["path"].tolist() == [str(file) for file in sorted(test_pictures.rglob("*.png"))]
    expected = softmax(logits_of_run(pictures), axis=1)
    np.testing.assert_allclose(table[[f"p({name})" for name in CLASSES]], expected, rtol=1e-5, atol=1e-6)
    recorded = np.load(pictures / "predictions.npz")
    assert table["prediction"].tolist() == [CLASSES[number] for number in recorded["student"]]
    np.testing.assert_allclose(table["probability"], expected.max(1), rtol=1e-5)
    assert len(set(table["prediction"])) > 1


def test_broken_and_missing_files_are_named_and_the_others_predicted(
    pictures: Path, test_pictures: Path, command: Command, tmp_path: Path
) -> None:
    broken = test_pictures / "bee" / "0001.png"
    broken.write_bytes(broken.read_bytes()[:-90])
    whole = [file for file in sorted(test_pictures.rglob("*.png")) if file != broken]
    out = tmp_path / "out.jsonl"
    given = [str(test_pictures / "nowhere.png"), str(test_pictures / "bee"), f"{test_pictures}/*/*.png"]
    answer = command(predict, *given, f"run='{pictures}'", f"out='{out}'", "top=2")
    assert answer.code == 1
    assert answer.out == ""
    assert f"left out: '{given[0]}': there is no such file." in answer.err
    assert f"left out: '{broken}' cannot be decoded" in answer.err
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    first = [file for file in whole if file.parent.name == "bee"]  # the order given, each once
    assert [row["path"] for row in rows] == [str(file) for file in dict.fromkeys(first + whole)]
    for row in rows:
        assert row["prediction"] != row["prediction_2"]
        assert 1 >= row["probability"] >= row["probability_2"] > 0


def test_arrays(pictures: Path, test_pictures: Path, tmp_path: Path) -> None:
    assert predict_files(pictures, [str(test_pictures)], tmp_path / "out.npz") == []
    found = np.load(tmp_path / "out.npz")
    np.testing.assert_allclose(found["probabilities"], softmax(logits_of_run(pictures), axis=1), rtol=1e-5)
    assert found["classes"].tolist() == CLASSES
    assert found["prediction"].tolist() == np.load(pictures / "predictions.npz")["student"].tolist()
    assert len(found["path"]) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"Which files\? distill-predict run="),
        (["nowhere.png"], r"There is nothing to predict\. 'nowhere\.png': there is no such file"),
        (["a.png", "top=0"], r"top=0: it must be a whole number of at least 1, or all"),
        (["a.png", "out=x.xlsx"], r"out=x\.xlsx: the file must end in \.csv, \.jsonl, \.npz"),
        (["a.png", "outt=x"], r"Unknown setting 'outt'\. Did you mean 'out'\?"),
    ],
)
def test_refusals(arguments: list[str], message: str, pictures: Path, command: Command) -> None:
    answer = command(predict, f"run='{pictures}'", *arguments)
    assert answer.code == 2
    assert re.search(message, answer.err), answer.err


def test_pictures_of_the_size_of_images_in_memory_are_those_images(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, values in zip(paths, grey, strict=True):
        Image.fromarray(values).save(path)
    Image.fromarray(np.kron(grey[2], np.ones((2, 2), np.uint8))).save(paths[2])  # twice the size
    fitted = FittedPictures(NamedPictures(paths), (1, 28, 28))
    index = torch.arange(3)
    found = fitted.batch(index, None, 0, 0)
    expected = TensorImages(torch.from_numpy(grey)[:, None]).batch(index, None, 0, 0)
    assert torch.equal(found[:2], expected[:2])
    assert found.shape == expected.shape
    assert np.corrcoef(found[2].flatten(), expected[2].flatten())[0, 1] > 0.9  # smoothed


ROWS = sentences(40)
Trained = Callable[..., Path]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """`untrained(file, overrides…)`: the folder of a run of one epoch on a file of texts."""

    def made(name: str, *overrides: str) -> Path:
        folder = tmp_path_factory.mktemp("texts")
        write_tokenizer(folder / "tokenizer")
        if name == "words.jsonl":
            rows = [{"words": text.split(), "tags": [str(len(word) > 4) for word in text.split()]} for text, _ in ROWS]
            write_jsonl(folder / name, rows)
            overrides = (*overrides, "data.source.words=words", "data.source.label=tags", "task=token_classification")
        else:
            label = (
                (lambda text, label: len(text) / 50) if name == "numbers.csv" else (lambda _, label: f"class{label}")
            )
            write_csv(folder / name, [(text, label(text, number)) for text, number in ROWS])
        source = "jsonl" if name.endswith("jsonl") else "text_csv"
        own = [f"data={source}", f"data.source.path='{folder / name}'", f"data.tokenizer='{folder / 'tokenizer'}'"]
        network = ["model/student=transformer", *bert_overrides("student", num_hidden_layers=1), "model/teacher=none"]
        small = ["data.batch_size=8", "data.max_length=12", "trainer.max_epochs=1", "logger=none"]
        train(config(folder / "run", *own, *network, *small, *overrides))
        return folder / "run"

    return made


def test_texts_are_predicted_as_in_the_evaluation(untrained: Trained, tmp_path: Path) -> None:
    folder = untrained("classes.csv")
    _, _, data, _ = rebuilt(folder, "test")
    texts = [data.raw.test.inputs.first[position] for position in data.raw.test.indices.tolist()]
    expected = softmax(logits_of_run(folder), axis=1)
    write_csv(tmp_path / "new.csv", [(text, "x") for text in texts], heading=("text", "more"))
    (tmp_path / "new.txt").write_text("\n\n".join(texts) + "\n\n", encoding="utf-8")
    for name, lines in (("new.csv", range(2, 2 + len(texts))), ("new.txt", range(1, 2 * len(texts), 2))):
        assert predict_files(folder, [str(tmp_path / name)], tmp_path / "out.csv", "all") == []
        table = pd.read_csv(tmp_path / "out.csv")
        assert table["text"].tolist() == texts
        assert table["line"].tolist() == list(lines)
        np.testing.assert_allclose(table[["p(class0)", "p(class1)"]], expected, rtol=1e-4, atol=1e-6)
    write_csv(tmp_path / "holes.csv", [("the film",), ("",), ("so dull",)], heading=["text"])
    write_csv(tmp_path / "other.csv", [("the film",)], heading=["txt"])
    problems = predict_files(folder, [str(tmp_path / "other.csv"), str(tmp_path / "holes.csv")], tmp_path / "out.csv")
    assert "has no such column. Did you mean 'txt'?" in problems[0]
    assert "the text is empty in 1 row (line 3): left out." in problems[1]
    assert pd.read_csv(tmp_path / "out.csv")["text"].tolist() == ["the film", "so dull"]


def test_words_have_a_row_each(untrained: Trained, tmp_path: Path) -> None:
    folder = untrained("words.jsonl")
    texts = ["the film was", "and " * 20, "a dull story"]
    (tmp_path / "new.txt").write_text("\n".join(texts), encoding="utf-8")
    predict_files(folder, [str(tmp_path / "new.txt")], tmp_path / "out.csv")
    table = pd.read_csv(tmp_path / "out.csv")
    for line, text in enumerate(texts, 1):
        words = text.split()[:10]  # of 12 tokens two are special
        assert table.loc[table["line"] == line, "word"].tolist() == words
        assert table.loc[table["line"] == line, "place"].tolist() == [*range(1, len(words) + 1)]
    assert set(table["prediction"]) <= {True, False}


def test_numbers_and_vectors(untrained: Trained, tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("the film\na very dull story\n", encoding="utf-8")
    folder = untrained("numbers.csv", "data.source.regression=true", "task=regression")
    predict_files(folder, [str(tmp_path / "new.txt")], tmp_path / "out.csv")
    predict_files(folder, [str(tmp_path / "new.txt")], tmp_path / "out.npz")
    numbers = pd.read_csv(tmp_path / "out.csv")["prediction"]
    np.testing.assert_allclose(numbers, np.load(tmp_path / "out.npz")["prediction"], rtol=1e-5)
    assert numbers.nunique() == 2
