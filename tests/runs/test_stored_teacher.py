"""Runs that learn from stored targets: as from the network that gave them, and with nothing said that is not known."""

import json
from collections.abc import Callable
from contextvars import Context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import DictConfig

from distillery.config.check import check
from distillery.config.networks import run_config
from distillery.core.errors import UserError
from distillery.data.sources.digits import digits
from distillery.models.weight_files import read_weights
from distillery.results.layout import PREDICTIONS
from distillery.results.layout import STUDENT as EXPORTED
from distillery.results.record import RunRecord
from distillery.results.report.write import write_report
from distillery.runs.job import Job
from distillery.runs.run import Result, train
from distillery.runs.verify_run import finished, student_of, verify_run
from fixtures.building import build
from fixtures.command_line import Cli
from fixtures.composing import Compose
from fixtures.runs import STUDENT, Died, Dies, config, sha256
from fixtures.texts import sentences, write_csv, write_tokenizer

GIVEN = (*STUDENT, "data.augment=null", "trainer.max_epochs=2", "logger=none")
STORED = (*GIVEN, "model/teacher=stored")


@pytest.fixture(scope="module")
def logits(teacher: Path) -> torch.Tensor:
    """What the teacher's network gives for every digit, [1797, 10]."""
    network = student_of(teacher, run_config(str(teacher), "run"), finished(teacher))
    with torch.no_grad():
        return network.eval()({"image": digits().train.inputs.values}).logits


@pytest.fixture(scope="module")
def cached(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run with the network as its teacher."""
    frozen = (f"teachers.main.weights='{teacher}'", "teachers.main.cache=true")
    return train(config(tmp_path_factory.mktemp("cached") / "run", *GIVEN, *frozen))


def saved(path: Path, values: torch.Tensor, kind: str = "probabilities", **more: Any) -> str:
    np.savez(path, **{kind: values.numpy(), "index": np.arange(len(values)), **more})
    return f"teachers.main.path='{path}'"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_weights(folder / EXPORTED)


def test_the_student_is_that_of_the_network(cached: Result, logits: torch.Tensor, tmp_path: Path) -> None:
    shuffled, names = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7], np.array(digits().classes)
    files = {
        "logits": saved(tmp_path / "z.npz", logits, "logits"),
        "probabilities": saved(tmp_path / "p.npz", logits.softmax(-1)),
        "taken at 4": saved(tmp_path / "t.npz", (logits / 4).softmax(-1)),
        "classes": saved(tmp_path / "c.npz", logits[:, shuffled], "logits", classes=names[shuffled]),
    }
    theirs = cached.record.teachers["main"]
    for name, path in files.items():
        more = ["teachers.main.temperature=4"] if name == "taken at 4" else []
        result = train(config(tmp_path / name, *STORED, path, *more))
        for key, values in weights(cached.folder).items():
            assert torch.allclose(weights(result.folder)[key], values, atol=1e-4), (name, key)
        ours = result.record.teachers["main"]
        assert (ours["role"], ours["score"]) == ("frozen", pytest.approx(theirs["score"]))
        assert ours["params"] is ours["flops"] is ours["latency_ms"] is None
        assert result.record.sources[":teachers.main"] == ours["sha256"]
        predicted = np.load(result.folder / PREDICTIONS)["main"]
        assert (predicted == np.load(cached.folder / PREDICTIONS)["main"]).all()
        reordered = [remark for remark in result.record.remarks if "reordered by their names: 0 is its 3" in remark]
        assert bool(reordered) == (name == "classes")
    assert verify_run(result.folder).score == result.record.metrics["last"]["test_score"]  # without any teacher


def test_a_score_that_is_not_known_is_left_out(
    logits: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_index = digits().train.indices
    path = tmp_path / "train.npz"
    np.savez(path, probabilities=logits.softmax(-1)[train_index], index=train_index)
    cfg = config(tmp_path / "run", *STORED, f"teachers.main.path='{path}'", "data.train_size=null")
    record = Context().run(train, cfg).record
    accuracy = (logits.argmax(-1) == digits().train.targets)[train_index].double().mean()
    shown = capsys.readouterr().out
    assert f"accuracy {accuracy:.4f} on the 800 labelled training samples" in shown
    assert f"Teacher 'main': accuracy {accuracy:.4f} on the training split" in shown
    entry = record.teachers["main"]
    assert (entry["score"], entry["scored_by"]) == (None, "nothing: some test samples have no stored target")
    assert any("200 of the 200 validation samples and 797 of the 797 test samples" in note for note in record.remarks)
    write_report([tmp_path], tmp_path, "Stored")
    assert (
        "`main` is scored by nothing: some test samples have no stored target." in (tmp_path / "report.md").read_text()
    )
    where = f"`main` was run elsewhere: its outputs are stored in {path}, SHA-256 `{sha256(path)}`."
    assert where in (tmp_path / "report.md").read_text()
    assert pd.read_csv(tmp_path / "report.csv")["retention"].isna().all()


def test_columns_or_rows_in_another_order_are_noticed(logits: torch.Tensor, tmp_path: Path) -> None:
    wrong = {
        "with the classes in another order it would": logits.roll(1, 1),
        "rows are of other samples": logits.roll(1, 0),
    }
    for cause, values in wrong.items():
        path = saved(tmp_path / "p.npz", values.softmax(-1))
        with pytest.warns(UserWarning, match=rf"'main' scores 0\.\d+ on the validation split of the student.*{cause}"):
            train(config(tmp_path / cause[:4], *STORED, path, "trainer.max_epochs=1"))
        with pytest.raises(UserError, match=rf"worse than min_teacher_score=0\.5\..*{cause}"):
            train(config(tmp_path / "refused", *STORED, path, "min_teacher_score=0.5"))


def test_what_the_targets_do_not_allow_is_refused(logits: torch.Tensor, tmp_path: Path) -> None:
    path = saved(tmp_path / "z.npz", logits, "logits")
    for losses in ("loss/feature=[hint]", "loss/relation=[rkd]", "loss/feature=[simkd]"):
        with pytest.raises(UserError, match=r"compares layers, and of teacher 'main' only the logits are known"):
            build(config(tmp_path / "run", *STORED, path, losses))
    for losses in ("loss/relation=[rkd]", "loss/response=[ofa]", "loss/response=[teacher_free]"):
        head = ["loss.rkd.layers={head: head}"] if "rkd" in losses else []
        build(config(tmp_path / "run", *STORED, path, losses, *head))
    with pytest.raises(UserError, match=r"teachers.main.cache=true: The outputs .* it takes no cache"):
        check(config(tmp_path / "run", *STORED, path), ["teachers.main.cache=true"])
    with pytest.raises(UserError, match=r"'teachers\.main\.pth'.* Did you mean 'path'"):
        check(config(tmp_path / "run", *STORED, path, "+teachers.main.pth=a"))
    nine = saved(tmp_path / "nine.npz", logits[:, :9], "logits")
    with pytest.raises(
        UserError, match=r"Teacher 'main' \(stored in .*nine.npz\) gives logits \(8, 9\) where the task has 10"
    ):
        build(config(tmp_path / "run", *STORED, nine))
    more = saved(tmp_path / "more.npz", torch.cat([logits[:, :2], logits], 1), "logits", classes=list("ab0123456789"))
    with pytest.raises(UserError, match=r"12\) where the task has 10 .*teachers\.main\.classes=names takes these"):
        build(config(tmp_path / "run", *STORED, more))
    teacher = build(config(tmp_path / "run", *STORED, more, "teachers.main.classes=names")).distiller.teachers["main"]
    assert torch.equal(teacher({"stored/main": torch.arange(12.0)[None]}).logits, torch.arange(2.0, 12)[None])


def test_another_file_is_another_job_and_a_stopped_run_is_resumed(logits: torch.Tensor, tmp_path: Path) -> None:
    file = tmp_path / "p.npz"
    given = (*STORED, saved(file, logits.softmax(-1)), "data.augment={crop: 1, flip: false}")
    whole = train(config(tmp_path / "whole", *given))
    with pytest.raises(Died):
        train(config(tmp_path / "run", *given), callbacks=[Dies(after=14)])
    moved = tmp_path / "moved.npz"
    file.rename(moved)
    given = (*given[:-2], f"teachers.main.path='{moved}'", given[-1])
    resumed = train(config(tmp_path / "run", *given))
    for key, values in weights(whole.folder).items():
        assert torch.equal(weights(resumed.folder)[key], values), key
    assert train(config(tmp_path / "run", *given)).kept
    saved(moved, (2 * logits).softmax(-1))
    with pytest.raises(UserError, match=r"holds a finished run of another job"):
        train(config(tmp_path / "run", *given))


@pytest.fixture
def texts(tmp_path: Path) -> Callable[..., list[str]]:
    """`texts(soft, labelled)`: the settings of a run on 60 sentences, of which the first ones have a label."""
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    soft = ("[0.9, 0.1]", "[0.9, 0.1]", "[0.2, 0.8]")  # of every third text that it is good, whatever it says
    test = [(f"{t} so", ("good", "bad")[y], soft[i % 3]) for i, (t, y) in enumerate(sentences(20, seed=1))]
    write_csv(tmp_path / "test.csv", test, ("text", "label", "p"))

    def written(confidence: float, labelled: int) -> list[str]:
        rows = [
            (
                text,
                ("good", "bad")[label] if row < labelled else "",
                json.dumps([confidence, 1 - confidence][:: 2 * label - 1]),
            )
            for row, (text, label) in enumerate(sentences(60))
        ]
        path = write_csv(tmp_path / "own.csv", rows, ("text", "label", "p"))
        return [
            "data=text_csv",
            f"data.source.path='{path}'",
            f"data.source.test='{tmp_path / 'test.csv'}'",
            "data.source.soft_label=p",
            f"data.tokenizer='{tokenizer}'",
            "model/teacher=stored",
            "model/student=bilstm",
            "trainer.max_epochs=1",
            "logger=none",
        ]

    return written


def test_texts_without_any_label_learn_from_a_column(
    compose_train: Compose, texts: Callable[..., list[str]], tmp_path: Path
) -> None:
    given = [*texts(0.9, 0), "task.weight=0", "callbacks.checkpoint_best=null", "optim=adamw", "trainer.max_epochs=10"]
    result = train(compose_train(*given))
    assert result.record.data["unlabelled"] == 60
    assert result.record.metrics["last"]["test_score"] > 0.9  # the labels were never seen
    assert result.record.teachers["main"]["source"] == "stored in the column data.source.soft_label"
    predictions = np.load(result.folder / PREDICTIONS)
    assert (predictions["main"] == (predictions["index"] % 3 == 2)).all()


def test_another_column_is_another_job(compose_train: Compose, texts: Callable[..., list[str]]) -> None:
    train(compose_train(*texts(0.9, 40)))

    def job(cfg: DictConfig) -> Job:
        return Job(check(cfg))

    before = job(compose_train(*texts(0.9, 40))).found()
    assert before is not None
    assert before.status == "finished"
    with pytest.raises(UserError, match=r"of another job \(its teacher, its data or the version"):
        job(compose_train(*texts(0.8, 40))).found()


def test_a_study_whose_teacher_is_stored(logits: torch.Tensor, tmp_path: Path, cli: Cli) -> None:
    saved(tmp_path / "p.npz", logits.softmax(-1))
    (tmp_path / "recipes" / "study").mkdir(parents=True)
    (tmp_path / "recipes" / "study" / "own.yaml").write_text(
        """
# @package _global_
name: own
title: Digits from stored probabilities
both: [data=digits, data.train_size=100, trainer.max_epochs=1, min_teacher_score=0]
teacher: null
student: [model/student=cnn, ++teachers.main.path=p.npz]
methods: [kd, dkd]
seeds: [0]
out: out
"""
    )
    code, shown = cli("study", "--config-dir", "recipes", "study=own", 'overrides=["model/teacher=stored"]')
    assert code == 0, shown
    table = pd.read_csv(tmp_path / "out" / "report.csv").set_index("method")
    assert list(table.index) == ["teacher", "baseline", "kd", "dkd"]
    assert table["score_mean"]["teacher"] == pytest.approx(
        RunRecord.read(tmp_path / "out" / "kd" / "seed0").teachers["main"]["score"]
    )
    assert table["retention"]["kd"] > 0
