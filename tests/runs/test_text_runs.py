"""Whole runs on texts, from a file to a finished run folder: each task, and a run that was stopped and goes on."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from scipy.stats import spearmanr
from transformers import AutoTokenizer

from distillery.core.errors import UserError
from distillery.data.tokens import IGNORED
from distillery.models.cnn import SmallCNN
from distillery.models.weights import save_weights
from distillery.results.record import RunRecord
from distillery.runs.job import resumed
from distillery.runs.run import Result, train
from distillery.runs.score_other_data import score_other_data
from distillery.runs.verify_run import verify_run
from fixtures.building import build
from fixtures.runs import Died, Dies, config, sha256
from fixtures.texts import (
    POSITIONS,
    VOCABULARY,
    bert_overrides,
    sentences,
    tiny_bert,
    write_csv,
    write_jsonl,
    write_tokenizer,
)

ROWS = sentences(140)
CUT = 12  # tokens
SMALL = (
    "data.batch_size=16",
    "optim=adamw",
    "optim.optimizer.lr=5e-3",
    "logger=none",
    "callbacks.scale_report=null",
)
pytestmark = pytest.mark.filterwarnings("ignore:Teacher 'main' scores")  # its weights are random
Trained = Callable[..., Result]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a tokenizer and the texts of every task."""
    folder = tmp_path_factory.mktemp("texts")
    write_tokenizer(folder / "tokenizer")
    write_csv(folder / "classes.csv", [(text, ("good", "bad")[label]) for text, label in ROWS])
    write_csv(folder / "numbers.csv", [(text, text.count(" ") / 4) for text, _ in ROWS])
    write_csv(folder / "plain.csv", [(text,) for text, _ in ROWS], heading=["text"])
    write_jsonl(folder / "words.jsonl", [{"words": text.split(), "tags": tags(text)} for text, _ in ROWS])
    return folder


def tags(text: str) -> list[str]:
    """Words of more than four letters, next to each other, are an entity."""
    long = [len(word) > 4 for word in text.split()]
    before = [False, *long]
    return [f"{'I' if begun else 'B'}-LONG" if own else "O" for begun, own in zip(before, long, strict=False)]


def texts(folder: Path, name: str) -> list[str]:
    source = "jsonl" if name.endswith(".jsonl") else "text_csv"
    return [f"data={source}", f"data.source.path='{folder / name}'", f"data.tokenizer='{folder / 'tokenizer'}'"]


def student(layers: int = 1) -> list[str]:
    return ["model/student=transformer", *bert_overrides("student", num_hidden_layers=layers)]


@pytest.fixture(scope="module")
def classes(folder: Path) -> list[str]:
    return [*texts(folder, "classes.csv"), f"data.max_length={CUT}", *SMALL]


@pytest.fixture(scope="module")
def teacher(folder: Path, classes: list[str]) -> Result:
    own = [*classes, *student(2), "model/teacher=none", "trainer.max_epochs=8"]
    return train(config(folder / "teacher", *own), own)


@pytest.fixture(scope="module")
def distilled(teacher: Result, classes: list[str]) -> list[str]:
    """The overrides of a student of this teacher."""
    return [*classes, *student(), "model/teacher=run", f"teachers.main.weights='{teacher.folder}'"]


@pytest.fixture(scope="module")
def whole(folder: Path, distilled: list[str]) -> Result:
    own = [*distilled, "trainer.max_epochs=2"]
    return train(config(folder / "whole", *own), own)


class TestClassification:
    def test_it_ends_with_a_record(self, whole: Result, teacher: Result) -> None:
        record, theirs = RunRecord.read(whole.folder), RunRecord.read(teacher.folder)
        assert (record.status, record.method) == ("finished", "kd")
        assert theirs.metrics["last"]["test_score"] > 0.8
        assert record.teachers["main"]["score"] == theirs.metrics["last"]["test_score"]
        assert record.teachers["main"]["sha256"] == theirs.student_sha256
        assert 0 <= record.metrics["last"]["test_score"] <= 1

    def test_what_it_costs(self, whole: Result) -> None:
        """BERT's own formula: tables of words, positions and types; a layer; pooler and classifier."""
        tables = (len(VOCABULARY) + POSITIONS + 2) * 16
        norm, dense = 2 * 16, 16 * 16 + 16
        layer = 4 * dense + (16 * 24 + 24) + (24 * 16 + 16) + 2 * norm
        rest = norm + dense + 2 * 16 + 2
        record = whole.record
        assert record.cost["embedding_params"] == tables
        assert record.cost["params"] == tables + layer + rest
        assert record.teachers["main"]["params"] == tables + 2 * layer + rest
        assert record.teachers["main"]["embedding_params"] == tables
        assert record.cost["flops"] > 0

    def test_what_is_said_of_the_texts(self, whole: Result) -> None:
        tokenizer = whole.parts.data.loaded_tokenizer  # type: ignore[attr-defined]
        longer = sum(len(ids) > CUT for ids in tokenizer([text for text, _ in ROWS])["input_ids"])
        split, cut = whole.record.data["remarks"]
        assert "28 texts drawn from train" in split
        assert cut.startswith(f"{longer} of 140 texts have more than {CUT} tokens")
        assert {part: whole.record.data[part] for part in ("train", "val", "test")} == {
            "train": 101,
            "val": 11,
            "test": 28,
        }

    def test_the_config_rebuilds_the_network_without_the_data(self, whole: Result, folder: Path) -> None:
        saved = OmegaConf.load(whole.folder / "config.yaml").student
        assert (saved.net.head, saved.net.num_classes) == ("sequence_classification", 2)
        assert saved.input.tokenizer == str(folder / "tokenizer")

    def test_the_predictions_are_of_each_text(self, whole: Result) -> None:
        with np.load(whole.folder / "predictions.npz") as saved:
            arrays = dict(saved)
        labels = [label for _, label in ROWS]
        expected = [whole.parts.data.classes.index(("good", "bad")[labels[index]]) for index in arrays["index"]]
        assert arrays["target"].tolist() == expected
        assert len(set(arrays["index"])) == 28
        assert np.mean(arrays["student"] == arrays["target"]) == pytest.approx(
            whole.record.metrics["last"]["test_score"]
        )

    def test_other_texts_are_scored(
        self, teacher: Result, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """By the network alone, text by text; the file has another order of columns and classes."""
        rows = sentences(30, seed=7)
        write_csv(tmp_path / "other.csv", [(("good", "bad")[label], text) for text, label in rows], ("label", "text"))
        given = {"source": {"path": str(tmp_path / "other.csv"), "test": None}}
        found = score_other_data(teacher.folder, given, "all")
        tokenizer, net = AutoTokenizer.from_pretrained(folder / "tokenizer"), teacher.parts.distiller.student.net
        right = 0
        for text, label in rows:
            inputs = tokenizer(text, truncation=True, max_length=CUT, return_tensors="pt")
            with torch.no_grad():
                likeliest = int(net.eval()(**inputs).logits.argmax())
            right += teacher.parts.data.classes[likeliest] == ("good", "bad")[label]
        assert len(found.target) == 30
        assert found.score == pytest.approx(right / 30)
        assert f"accuracy {right / 30:.4f} on all 30 samples of other" in capsys.readouterr().out
        score_other_data(teacher.folder, given)
        assert " on 6 of 30 samples of other (test); split=all scores them all" in capsys.readouterr().out

    @pytest.mark.parametrize("after", [9, pytest.param(11, marks=pytest.mark.slow)])  # of 14 steps; saved after 9
    def test_a_resumed_run_ends_bit_equal(
        self, after: int, distilled: list[str], whole: Result, tmp_path: Path
    ) -> None:
        stop_and_go([*distilled, "trainer.max_epochs=2"], tmp_path / "run", after)
        for file in ("student.safetensors", "predictions.npz"):
            assert sha256(tmp_path / "run" / file) == sha256(whole.folder / file), file


def stop_and_go(overrides: Sequence[str], folder: Path, after: int) -> None:
    """A run that dies in the step after so many, having saved each third one, and is resumed."""
    often = ["callbacks.checkpoint_last.every_n_epochs=null", "+callbacks.checkpoint_last.every_n_train_steps=3"]
    with pytest.raises(Died):
        train(config(folder, *overrides, *often), callbacks=[Dies(after)])
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == after // 3 * 3
    torch.manual_seed(99)
    assert train(resumed(folder, [])).record.status == "finished"


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Trained:
    """`run(file, task, head, classes, overrides…)`: a student of a teacher of random weights."""

    def trained(name: str, task: str, classes: int | None, *overrides: str, place: str = "run") -> Result:
        head = "sequence_classification" if task == "regression" else task.replace("embedding", "sentence_embedding")
        save_weights(tiny_bert(head, classes), tmp_path / "teacher.safetensors")
        own = [
            *texts(folder, name),
            f"task={task}",
            *SMALL,
            *student(),
            "model/teacher=transformer",
            *bert_overrides("teachers.main"),
            f"teachers.main.weights='{tmp_path / 'teacher.safetensors'}'",
            "trainer.max_epochs=1",
            *overrides,
        ]
        result = train(config(tmp_path / place, *own), own)
        assert result.record.status == "finished"
        assert 0 <= result.record.metrics["last"]["test_score"] <= 1
        return result

    return trained


def predictions(result: Result) -> dict[str, Any]:
    with np.load(result.folder / "predictions.npz") as saved:
        return dict(saved)


def test_masked_lm(run: Trained) -> None:
    result = run("plain.csv", "masked_lm", len(VOCABULARY), "data.source.label=null", "data.mask=0.15")
    found = predictions(result)
    counts = Counter(found["index"].tolist())
    assert len(counts) == 28  # each text has one at least
    known = result.parts.data.loaded_tokenizer  # type: ignore[attr-defined]
    for index, target in zip(found["index"], found["target"], strict=True):
        assert target in known(ROWS[index][0])["input_ids"]
        assert target not in known.all_special_ids
    assert result.record.data["num_classes"] == 0
    assert {found[name].max() < len(VOCABULARY) for name in ("student", "main")} == {True}
    networks = {"student": result.parts.distiller.student, "main": result.parts.distiller.teachers["main"]}
    surprise: dict[str, list[float]] = {"student": [], "main": []}
    for batch in result.parts.data.test_dataloader():
        for name, network in networks.items():
            with torch.no_grad():
                chance = network.eval()(batch).logits.double().softmax(-1)
            surprise[name] += [
                -float(chance[row, place, batch["target"][row, place]].log())
                for row, place in (batch["target"] != IGNORED).nonzero().tolist()
            ]
    assert result.record.metrics["last"]["perplexity"] == pytest.approx(np.exp(np.mean(surprise["student"])), rel=1e-5)
    assert result.record.teachers["main"]["perplexity"] == pytest.approx(np.exp(np.mean(surprise["main"])), rel=1e-5)


def test_masked_lm_in_stages(run: Trained) -> None:
    """The guard scores the frozen teacher before each stage."""
    given = ["data.source.label=null", "data.mask=0.15", "+stages={first: {epochs: 1}, second: {epochs: 1}}"]
    result = run("plain.csv", "masked_lm", len(VOCABULARY), *given)
    assert [entry["stage"] for entry in result.record.timeline] == ["first", "second"]


def test_token_classification(run: Trained) -> None:
    columns = ["data.source.words=words", "data.source.label=tags"]
    chosen = ["task.metrics=[entity_f1]", "trainer.max_epochs=4", "optim.optimizer.lr=2e-2", "loss.kd.weight=0.01"]
    result = run("words.jsonl", "token_classification", 3, *columns, *chosen)
    found, names = predictions(result), ("B-LONG", "I-LONG", "O")
    for index in set(found["index"].tolist()):
        expected = [names.index(tag) for tag in tags(ROWS[index][0])]
        assert found["target"][found["index"] == index].tolist() == expected
    assert len(set(found["index"].tolist())) == 28
    last, theirs = result.record.metrics["last"], spans(found["index"], found["target"])
    for name, recorded in (
        ("student", last["test_entity_f1"]),
        ("main", result.record.teachers["main"]["entity_f1"]),
    ):
        own = spans(found["index"], found[name])
        assert recorded == pytest.approx(2 * len(own & theirs) / (len(own) + len(theirs)), abs=1e-6)
    assert 0.1 < last["test_entity_f1"] < 1


def spans(index: Any, predicted: Any) -> set[tuple[int, int, int]]:
    """The entities of all texts: B and the I after it, or I alone, found by a pattern."""
    found = set()
    for text in set(index.tolist()):
        letters = "".join("BIO"[each] for each in predicted[index == text])
        found |= {(text, *match.span()) for match in re.finditer("BI*|I+", letters)}
    return found


def test_regression(run: Trained) -> None:
    given = ["data.source.regression=true", "loss/response=[logit_mse]", "task.metrics=[spearman]"]
    result = run("numbers.csv", "regression", 1, *given)
    found = predictions(result)
    expected = [ROWS[index][0].count(" ") / 4 for index in found["index"]]
    assert found["target"].tolist() == expected
    assert found["student"].shape == found["main"].shape == (28,)
    for name, recorded in (("student", result.record.metrics["last"]), ("main", result.record.teachers["main"])):
        rho = spearmanr(found[name], expected).statistic
        assert recorded["test_spearman" if name == "student" else "spearman"] == pytest.approx(rho, abs=1e-6)
        assert recorded["test_score" if name == "student" else "score"] == pytest.approx(max(rho, 0), abs=1e-6)


def test_embedding(run: Trained) -> None:
    result = run("classes.csv", "embedding", None, "loss/response=[logit_mse]")
    found = predictions(result)
    assert found["student"].shape == found["main"].shape == (28, 16)
    right = 0
    for own, vector in enumerate(found["student"]):
        cosines = found["student"] @ vector / np.linalg.norm(found["student"], axis=1)
        cosines[own] = -np.inf
        right += found["target"][cosines.argmax()] == found["target"][own]
    assert result.record.metrics["last"]["test_score"] == pytest.approx(right / 28)


@pytest.mark.parametrize("width", [16, 8])
def test_embedding_without_labels(run: Trained, width: int) -> None:
    """Also of another width than the teacher's, through a projector that is no part of the student."""
    projected = ("loss/response=[]", "loss/feature=[hint]", "loss.hint.layers={output: output}")
    loss = ("loss/response=[logit_mse]",) if width == 16 else projected
    result = run(
        "plain.csv", "embedding", None, "data.source.label=null", f"student.net.config.hidden_size={width}", *loss
    )
    found = predictions(result)
    assert found["student"].shape == (28, width)
    assert found["target"].shape == (28, 16)
    np.testing.assert_array_equal(found["target"], found["main"])
    with torch.no_grad():
        (batch,) = result.parts.data.test_dataloader()
        theirs = result.parts.distiller.teachers["main"](batch).logits
    np.testing.assert_allclose(found["main"], theirs, atol=1e-6)

    def neighbours(vectors: Any) -> list[set[int]]:
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        cosines = unit @ unit.T
        np.fill_diagonal(cosines, -np.inf)
        return [set(row[-10:]) for row in cosines.argsort(axis=1)]

    pairs = zip(neighbours(found["student"]), neighbours(found["main"]), strict=True)
    shared = np.mean([len(own & other) / 10 for own, other in pairs])
    record = result.record
    assert record.metrics["last"]["test_score"] == pytest.approx(shared, abs=1e-6)
    assert record.metrics["last"]["val_score"] is not None
    assert record.teachers["main"]["score"] == 1.0
    assert record.data["score_name"] == "neighbour agreement"
    assert verify_run(result.folder).score == pytest.approx(shared, abs=1e-6)
    with pytest.raises(UserError, match="kept for the test split only"):
        verify_run(result.folder, "val")
    with pytest.raises(UserError, match=r"compare the student with its teacher.*Give data with classes"):
        score_other_data(result.folder, {"source": {"test_fraction": 0.3}})


def test_an_embedding_of_images_has_a_width(tmp_path: Path) -> None:
    """Of networks of timm it is that of their features; others must be told."""
    save_weights(SmallCNN(6, 1, (4,)), tmp_path / "teacher.safetensors")
    own = [
        *("data=digits", "task=embedding", "model/teacher=cnn", "teachers.main.net.widths=[4]"),
        *("+teachers.main.net.num_classes=6", f"teachers.main.weights='{tmp_path / 'teacher.safetensors'}'"),
    ]
    with pytest.raises(
        UserError, match=r"student\.net: this task leaves the width of the vectors open.*num_classes=64"
    ):
        build(config(tmp_path / "run", *own, "loss/response=[logit_mse]"))
    timm = ["model/student=timm", "student.net.model_name=resnet10t", "loss/response=[]", "loss/feature=[hint]"]
    parts = build(config(tmp_path / "run", *own, *timm, "loss.hint.layers={output: output}"))
    signals = parts.distiller.student.eval()(parts.example)
    assert signals.logits.shape == signals.layers["output"].shape == (8, 512)
    (projector,) = parts.distiller.objective.terms["hint"].projectors  # type: ignore[attr-defined]
    assert (projector.in_features, projector.out_features) == (512, 6)


@pytest.mark.slow
def test_a_resumed_run_sees_the_same_masks(run: Trained, tmp_path: Path) -> None:
    given = ["data.source.label=null", "data.mask=0.15", "trainer.max_epochs=3"]
    result = run("plain.csv", "masked_lm", len(VOCABULARY), *given)
    stop_and_go(result.record.overrides, tmp_path / "again", 9)  # of 21 steps, in the second epoch
    for file in ("student.safetensors", "predictions.npz"):
        assert sha256(tmp_path / "again" / file) == sha256(result.folder / file), file
