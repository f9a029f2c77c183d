"""Answers in contexts: windows against a loop, F1 and exact match against SQuAD's official script."""

import collections
import json
import re
import string
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor
from transformers import AutoModelForQuestionAnswering

from distillery.config.networks import run_config
from distillery.core.errors import UserError
from distillery.data.sources.squad import hf_squad, squad
from distillery.data.text import TextData
from distillery.losses.response.kd import KD
from distillery.losses.signals import Signals
from distillery.models.taps.network import Network
from distillery.runs.export.transformers_folder import export_for_transformers as export
from distillery.runs.predict import predict_files
from distillery.runs.run import train
from distillery.runs.score_other_data import score_other_data
from distillery.runs.verify_run import verify_run
from distillery.tasks.question_answering import QuestionAnswering
from distillery.training.objective import Objective
from fixtures.runs import config
from fixtures.texts import bert_overrides, tiny_bert, write_tokenizer

WORDS = "good great warm kind bad dull cold cruel film plot actor scene story".split()


def write_squad(file: Path, number: int, seed: int, impossible: bool = False, words: int = 30) -> Path:
    """Questions about contexts of so many words; each third has a second answer, or none."""
    draw = np.random.default_rng(seed)
    paragraphs = []
    for each in range(number):
        chosen = [str(word) for word in draw.choice(WORDS, words)]
        place = int(draw.integers(words - 2))
        context = " ".join(chosen)
        answers = [" ".join(chosen[place : place + 2])]
        begins = [sum(len(word) + 1 for word in chosen[:place])]
        if each % 3 == 0:
            answers, begins = [*answers, chosen[0]], [*begins, 0]
        given = [{"text": text, "answer_start": begin} for text, begin in zip(answers, begins, strict=True)]
        none = impossible and each % 3 == 1
        question = {"id": str(each), "question": f" {chosen[place]} is so?", "answers": [] if none else given}
        paragraphs.append({"context": context, "qas": [question | {"is_impossible": none}]})
    file.write_text(json.dumps({"version": "x", "data": [{"title": "t", "paragraphs": paragraphs}]}), encoding="utf-8")
    return file


def data_of(tmp_path: Path, impossible: bool = False, words: int = 30, **settings: Any) -> TextData:
    files = [
        write_squad(tmp_path / f"{part}.json", 12, seed, impossible, words)
        for seed, part in enumerate(("train", "dev"))
    ]
    own = {"tokenizer": write_tokenizer(tmp_path / "tokenizer"), "batch_size": 4, "eval_batch_size": 7, "seed": 0}
    return TextData(lambda: squad(*files), **{**own, "max_length": 20, "doc_stride": 4, "val_size": 2, **settings})


def batches(data: TextData) -> list[dict[str, Tensor]]:
    return [*data.test_dataloader()]


# The official evaluation script of SQuAD 2.0, written anew.
def normal(text: str) -> str:
    text = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact(right: str, predicted: str) -> float:
    return float(normal(right) == normal(predicted))


def f1(right: str, predicted: str) -> float:
    ours, theirs = normal(predicted).split(), normal(right).split()
    common = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    if not ours or not theirs:
        return float(ours == theirs)
    precision, recall = common / len(ours), common / len(theirs)
    return 2 * precision * recall / (precision + recall) if common else 0.0


Spans = tuple[list[tuple[float, str]], list[float]]  # each with its logit; the logits of no answer


def spans_by_hand(data: TextData, logits: dict[int, Tensor], longest: int = 30) -> dict[int, Spans]:
    """All spans of each question, over its windows one by one."""
    found: dict[int, Spans] = {}
    for batch in batches(data):
        for row, (window, question) in enumerate(zip(batch["index"].tolist(), batch["question"].tolist(), strict=True)):
            start, end = logits[window].T.tolist()
            spans, none = found.setdefault(question, ([], []))
            none.append(start[0] + end[0])
            inside = [at for at in range(len(batch["begin"][row])) if batch["end"][row, at] > batch["begin"][row, at]]
            for first in inside:
                for last in inside:
                    if first <= last < first + longest:
                        text = data.questions[question].context[batch["begin"][row, first] : batch["end"][row, last]]
                        spans.append((start[first] + end[last], text))
    return found


def by_hand(data: TextData, logits: dict[int, Tensor], refusable: bool, longest: int = 30) -> dict[str, float]:
    """F1 and exact match of the best span of each question."""
    found: dict[str, list[float]] = {"f1": [], "exact": []}
    for question, (spans, none) in spans_by_hand(data, logits, longest).items():
        score, text = max(spans)
        predicted = "" if refusable and min(none) > score else text
        for name, judge in (("f1", f1), ("exact", exact)):
            found[name].append(max(judge(right, predicted) for right in data.questions[question].answers or ("",)))
    return {name: float(np.mean(values)) for name, values in found.items()}


def logits_of(student: Network, data: TextData) -> dict[int, Tensor]:
    """Of each window of the test split."""
    with torch.no_grad():
        both = [(batch["index"].tolist(), student(batch).logits) for batch in batches(data)]
    return {window: logits for index, of_batch in both for window, logits in zip(index, of_batch, strict=True)}


def random_logits(batch: dict[str, Tensor], none: float = 0.0) -> Tensor:
    """Higher at the right places, so that some answers are right. `none`: added to those of no answer."""
    draw = torch.Generator().manual_seed(int(batch["index"][0]))
    logits = torch.randn(*batch["target"].shape, 2, generator=draw)
    places = torch.stack([(batch["target"] == 1) | (batch["target"] == 3), batch["target"] >= 2], -1)
    logits = logits + 2.5 * places
    logits[:, 0] += none
    return logits


def test_windows_hold_the_whole_context_and_the_answer(tmp_path: Path) -> None:
    data = data_of(tmp_path)
    assert data.sizes["test"] > 12
    assert f"24 questions in {sum(data.sizes.values())} windows of at most 20 tokens" in data.remarks
    seen: dict[int, set[int]] = {}
    whole = dict.fromkeys(range(len(data.questions)), 0)
    for batch in batches(data):
        for row, question in enumerate(batch["question"].tolist()):
            context, answers = data.questions[question]
            target, begin, end = (batch[key][row].tolist() for key in ("target", "begin", "end"))
            inside = [at for at in range(len(target)) if end[at] > begin[at]]
            for at in inside:
                piece = data.loaded_tokenizer.decode(batch["input_ids"][row, at]).replace("##", "").strip()
                assert context[begin[at] : end[at]] == piece
            assert [at for at, value in enumerate(target) if value != -100] == [0, *inside]
            seen.setdefault(question, set()).update(place for at in inside for place in range(begin[at], end[at]))
            (first,) = [at for at, value in enumerate(target) if value in (1, 3)]
            (last,) = [at for at, value in enumerate(target) if value in (2, 3)]
            assert (first == 0) == (last == 0)
            if first:
                assert context[begin[first] : end[last]] == answers[0]
                whole[question] += 1
            else:
                text, at = data.raw.test.inputs.answers[question - 12][0]
                assert begin[inside[0]] > at or end[inside[-1]] < at + len(text)
    assert all(
        len(places) == len(data.questions[question].context.replace(" ", "")) for question, places in seen.items()
    )
    assert all(whole[question] >= 1 for question in seen)


@pytest.mark.parametrize(
    ("impossible", "none", "words", "length"),
    [(False, 0.0, 30, 20), (False, 9.0, 30, 20), (True, 0.0, 30, 20), (True, 1.5, 30, 20), (True, 0.0, 60, 80)],
)
def test_scores_are_those_of_the_official_script(
    tmp_path: Path, impossible: bool, none: float, words: int, length: int
) -> None:
    """With windows of 80 tokens some spans would be longer than an answer may be."""
    data, task = data_of(tmp_path, impossible, words, max_length=length), QuestionAnswering()
    assert task.outputs(data) is None
    metric, chosen = task.metric(None), task.chosen_metrics(None)
    logits: dict[int, Tensor] = {}
    for batch in batches(data):
        given = random_logits(batch, none)
        logits |= dict(zip(batch["index"].tolist(), given, strict=True))
        rows, of_rows = task.rows(Signals(given), batch)
        task.score_rows(metric, rows.logits, torch.empty(0), of_rows)
        task.update_metrics(chosen, rows.logits, torch.empty(0), of_rows)
    expected = by_hand(data, logits, impossible)
    if words > 30:
        assert expected != by_hand(data, logits, impossible, longest=99)
    assert 0.05 < expected["exact"] < expected["f1"] < 1
    assert metric.compute().item() == pytest.approx(expected["f1"], abs=1e-6)
    assert chosen["exact_match"].compute().item() == pytest.approx(expected["exact"], abs=1e-6)


def test_rows_are_distributions_over_the_context(tmp_path: Path) -> None:
    """The loss is the mean of both cross-entropies, and kd that of both divergences, over positions of the context."""
    data, task = data_of(tmp_path), QuestionAnswering()
    batch = batches(data)[0]
    ours, theirs = random_logits(batch).double(), random_logits(batch, 1.0).double().flip(0)
    losses = Objective(task, {"kd": KD(temperature=2.0)})(Signals(ours), {"main": Signals(theirs)}, batch)
    hard, soft = [], []
    for row, target in enumerate(batch["target"].tolist()):
        possible = [at for at, value in enumerate(target) if value != -100]
        for side in (0, 1):
            s, t = (np.exp(each[row, possible, side].numpy()) for each in (ours, theirs))
            (right,) = [place for place, at in enumerate(possible) if target[at] in ((1, 3), (2, 3))[side]]
            hard.append(-np.log(s[right] / s.sum()))
            s, t = (np.sqrt(each) / np.sqrt(each).sum() for each in (s, t))
            soft.append(4 * (t * np.log(t / s)).sum())
    assert losses.terms["task"].item() == pytest.approx(np.mean(hard), rel=1e-6)
    assert losses.terms["kd"].item() == pytest.approx(np.mean(soft), rel=1e-6)
    with pytest.raises(UserError, match=r"logits \[7, \d+\] for windows .* head question_answering"):
        task.rows(Signals(ours[..., 0]), batch)
    with pytest.raises(UserError, match="this batch has no questions"):
        task.rows(Signals(ours), {key: value for key, value in batch.items() if key != "question"})


def test_a_data_set_of_the_hub_gives_the_same(tmp_path: Path) -> None:
    files = [write_squad(tmp_path / f"{part}.json", 6, seed, True) for seed, part in enumerate(("train", "dev"))]
    expected = squad(*files)
    for name, split in {"train": expected.train, "validation": expected.test}.items():
        texts = split.inputs
        answers = [{"text": [t for t, _ in each], "answer_start": [at for _, at in each]} for each in texts.answers]
        rows = zip(texts.first, texts.second, answers, strict=True)
        lines = [json.dumps({"question": q, "context": c, "answers": a}) for q, c, a in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    given = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "validation")}
    found = hf_squad("json", data_files=given, test=None)
    for part in ("train", "test"):
        assert getattr(found, part).inputs == getattr(expected, part).inputs
    assert found.val is None
    with pytest.raises(UserError, match="has no column 'question'"):
        hf_squad("csv", data_files={"train": _csv(tmp_path), "validation": _csv(tmp_path)}, test=None)


def _csv(folder: Path) -> str:
    (folder / "a.csv").write_text("context,answers\na,b\n", encoding="utf-8")
    return str(folder / "a.csv")


def test_files_and_settings_that_do_not_fit(tmp_path: Path) -> None:
    file = write_squad(tmp_path / "a.json", 3, 0)
    with pytest.raises(
        UserError, match=r"data\.source\.test=.*b\.json: there is no such file\. Did you mean 'a\.json'"
    ):
        squad(file, tmp_path / "b.json")
    broken = json.loads(file.read_text())
    broken["data"][0]["paragraphs"][1]["qas"][0]["answers"][0]["answer_start"] += 1
    (tmp_path / "c.json").write_text(json.dumps(broken))
    with pytest.raises(UserError, match=r"data\.source\.path=.* is not at character \d+ of its context; there is"):
        squad(tmp_path / "c.json", file)
    (tmp_path / "d.json").write_text('{"data": 5}')
    with pytest.raises(UserError, match="it is not in SQuAD's format"):
        squad(file, tmp_path / "d.json")
    with pytest.raises(
        UserError, match=r"max_length=12 data\.doc_stride=5: the question 'good is so\?' .* tokens|leaves none"
    ):
        _ = data_of(tmp_path, max_length=12, doc_stride=5).splits
    with pytest.raises(UserError, match="has no questions with contexts"):
        QuestionAnswering().outputs(type("Data", (), {"name": "x", "classes": (), "questions": ()})())


@pytest.mark.filterwarnings("ignore:Teacher 'main' scores")  # its weights are random
def test_a_run_distils_answers(tmp_path: Path) -> None:
    """The recorded F1 and exact match are those of the student's logits; an unlabelled question is learnt, too."""
    files = [write_squad(tmp_path / f"{part}.json", 24, seed, True) for seed, part in enumerate(("train", "dev"))]
    net = tiny_bert("question_answering", None)
    net.save_pretrained(tmp_path / "teacher")
    own = [
        "data=squad",
        f"data.source.path='{files[0]}'",
        f"data.source.test='{files[1]}'",
        f"data.tokenizer='{write_tokenizer(tmp_path / 'tokenizer')}'",
        "data.max_length=20",
        "data.doc_stride=4",
        "data.batch_size=16",
        "data.labelled_size=12",
        "task=question_answering",
        "model/student=transformer",
        *bert_overrides("student"),
        "model/teacher=transformer",
        f"teachers.main.net.model='{tmp_path / 'teacher'}'",
        f"teachers.main.input.tokenizer='{tmp_path / 'tokenizer'}'",
        "loss/feature=[hidden_mse]",
        "optim=adamw",
        "logger=none",
        "trainer.max_epochs=1",
    ]
    result = train(config(tmp_path / "run", *own), own)
    data, student = result.parts.data, result.parts.distiller.student.eval()
    assert isinstance(data, TextData)
    expected = by_hand(data, logits_of(student, data), True)
    last = result.record.metrics["last"]
    assert last["test_score"] == pytest.approx(expected["f1"], abs=1e-6)
    assert last["test_exact_match"] == pytest.approx(expected["exact"], abs=1e-6)
    assert result.record.data["unlabelled"] > 0
    with np.load(result.folder / "predictions.npz") as saved:
        assert saved["student"].shape == saved["main"].shape == saved["target"].shape == (2 * data.sizes["test"],)
    assert verify_run(result.folder).score == pytest.approx(expected["f1"], abs=1e-6)

    other = write_squad(tmp_path / "other.json", 9, 5, True)  # on other data: scored, and answered without labels
    scored = score_other_data(result.folder, {"source": {"test": str(other)}})
    data = instantiate(run_config(str(result.folder), "run").data, source=lambda: squad(files[0], other))
    logits = logits_of(student, data)
    expected = by_hand(data, logits, True)
    assert scored.score == pytest.approx(expected["f1"], abs=1e-6)
    assert scored.metrics["exact_match"] == pytest.approx(expected["exact"], abs=1e-6)
    asked = data.raw.test.inputs
    pd.DataFrame({"context": asked.second, "question": asked.first}).to_csv(tmp_path / "new.csv", index=False)
    assert predict_files(result.folder, [str(tmp_path / "new.csv")], tmp_path / "out.jsonl") == []
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["question"] for row in rows] == list(asked.first)
    spans = spans_by_hand(data, logits)
    for number, row in zip(sorted(spans), rows, strict=True):
        possible, none = spans[number][0], min(spans[number][1])
        total = np.exp([score for score, _ in possible]).sum() + np.exp(none)
        best, text = max(possible)
        assert (row["answer"], list(row)[-1]) == (text, "p(no answer)")
        assert row["probability"] == pytest.approx(np.exp(best) / total, rel=1e-5)
        assert row["p(no answer)"] == pytest.approx(np.exp(none) / total, rel=1e-5)
    (tmp_path / "new.txt").write_text("a question?")
    with pytest.raises(UserError, match=r"nothing to predict.*from a table with the columns question and context"):
        predict_files(result.folder, [str(tmp_path / "new.txt")])

    exported = export(result.folder, tmp_path / "export")
    assert "AutoModelForQuestionAnswering" in (exported / "README.md").read_text()
    batch = batches(data)[0]
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.no_grad():
        again = AutoModelForQuestionAnswering.from_pretrained(exported).eval()(**inputs)
        torch.testing.assert_close(torch.stack([again.start_logits, again.end_logits], -1), student(batch).logits)
