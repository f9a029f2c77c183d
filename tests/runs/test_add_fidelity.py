"""Fidelity of language models to their teachers: by loops with transformers alone, whatever the batches."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distillery.data.text import TextData
from distillery.data.tokens import IGNORED
from distillery.models.adapters import TextAdapter
from distillery.models.taps.end_before_head import find_head
from distillery.models.taps.network import Network
from distillery.results.record import RunRecord
from distillery.runs import fidelity
from distillery.runs.fidelity import add_fidelity, prompted
from distillery.tasks.causal_lm import CausalLM
from distillery.tasks.classification import Classification
from distillery.teachers.frozen import Teacher
from fixtures.documents import HARD, document_data, documents, tiny_llama, write_bpe

TEXTS = [*documents(7, longest=40), *HARD]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TextData:
    made = document_data(write_bpe(tmp_path_factory.mktemp("bpe")), TEXTS, max_length=24)
    made.setup("test")
    return made


def record_of(data: TextData, **teachers: Teacher) -> tuple[RunRecord, torch.nn.Module, torch.nn.Module]:
    """The record of a student with logits that its tokenizer does not have, and the networks."""
    student, net = tiny_llama(data.vocab_size + 5, seed=1), tiny_llama(data.vocab_size)
    with torch.no_grad():
        student.get_output_embeddings().weight[data.vocab_size :] = 9.0  # would take all probability
    main = Teacher(net, TextAdapter(net), "main")
    find_head(main, data.example(2))  # the student has its logits at once, the teacher in chunks of rows
    record, task = RunRecord("kd", "kd", 0, "x"), CausalLM()
    own = Network(student.train(), TextAdapter(student))
    add_fidelity(record, own, {"main": main, **teachers}, data, task, task.outputs(data))
    assert student.training
    return record, student.eval(), net


def log_p(net: torch.nn.Module, ids: list[int], size: int) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(net(torch.tensor([ids])).logits[0, :, :size].double().log_softmax(-1))


def means(student: torch.nn.Module, teacher: torch.nn.Module, texts: list[tuple[list[int], int]], size: int) -> Any:
    """From tokens of some texts and the number of those that bear no loss."""
    found: dict[str, list[float]] = {key: [] for key in ("kl", "reverse_kl", "acceptance", "agreement", "entropy")}
    for ids, first in texts:
        s, t = log_p(student, ids, size)[first - 1 : -1], log_p(teacher, ids, size)[first - 1 : -1]
        found["kl"] += [*(np.exp(t) * (t - s)).sum(-1)]
        found["reverse_kl"] += [*(np.exp(s) * (s - t)).sum(-1)]
        found["acceptance"] += [*np.minimum(np.exp(s), np.exp(t)).sum(-1)]
        found["agreement"] += [*(s.argmax(-1) == t.argmax(-1)).astype(float)]
        found["entropy"] += [*-(np.exp(s) * s).sum(-1)]
    return found


def test_each_figure_is_that_of_a_loop_over_the_texts(data: TextData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "FORWARD", 50)  # two blocks at once
    monkeypatch.setattr(fidelity, "ROWS", 10)
    record, student, teacher = record_of(data)
    tokenizer, size = data.loaded_tokenizer, data.vocab_size
    pieces = []
    for text in TEXTS:
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        pieces += [(ids[start : start + 24], 1) for start in range(0, len(ids) - 1, 23)]
    expected = means(student, teacher, pieces, size)
    found = record.fidelity
    assert found["student"]["tokens"] == found["main"]["tokens"] == len(expected["kl"])
    for key in ("kl", "reverse_kl", "acceptance", "agreement"):
        assert found["main"][key] == pytest.approx(np.mean(expected[key]), rel=1e-5), key
    assert found["student"]["entropy"] == pytest.approx(np.mean(expected["entropy"]), rel=1e-5)
    assert found["main"]["entropy"] != pytest.approx(found["student"]["entropy"], rel=1e-3)
    assert sum(found["student"]["bins"]["count"]) == len(expected["kl"])

    # prompts of documents: the first quarter of a window, or half of a shorter text; then what the data have
    given = prompted(data)
    rows = zip(given["input_ids"], given["target"], given["attention_mask"].sum(1).tolist(), strict=True)
    texts = [(ids[:n].tolist(), int((target != IGNORED).int().argmax())) for ids, target, n in rows]
    starts = {tuple(ids) for ids, _ in pieces}
    assert len(texts) == min(32, data.sizes["test"]) == found["student"]["texts"]["number"]
    for ids, prompt in texts:
        assert tuple(ids) in starts
        assert prompt == min(6, len(ids) // 2)
    expected = means(student, teacher, texts, size)
    assert found["main"]["data_text"]["tokens"] == len(expected["kl"])
    assert found["main"]["data_text"]["kl"] == pytest.approx(np.mean(expected["kl"]), rel=1e-5)
    assert max(len(ids) - prompt for ids, prompt in texts) == 18, "so that a figure is the mean over two tokens"
    places = np.concatenate([np.arange(len(ids) - prompt) for ids, prompt in texts]) // 2
    profile = [np.array(expected["kl"])[places == place].mean() for place in range(9)]
    assert found["main"]["data_text"]["kl_by_place"] == pytest.approx(profile, rel=1e-5)

    # its own text: the tokens are drawn, and scored as any text
    own = found["main"]["own_text"]
    assert len(texts) < own["tokens"] <= 18 * len(texts)
    assert own["kl"] != pytest.approx(found["main"]["data_text"]["kl"], rel=1e-3)
    assert record_of(data)[0].fidelity["main"]["own_text"] == own, "a draw is a function of the seed"

    # greedy continuations, each text by itself
    assert len(record.samples) == 3
    for sample, (ids, prompt) in zip(record.samples, texts, strict=False):
        assert (sample["prompt"], sample["data"]) == (tokenizer.decode(ids[:prompt]), tokenizer.decode(ids[prompt:]))
        for name, net in (("student", student), ("main", teacher)):
            so_far = ids[:prompt]
            while len(so_far) < prompt + 18 and (so_far[-1] != tokenizer.eos_token_id or len(so_far) == prompt):
                so_far = [*so_far, int(log_p(net, so_far, size)[-1].argmax())]
            assert sample[name] == tokenizer.decode(so_far[prompt:])


def test_only_a_share_of_a_long_split_is_compared(data: TextData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "TOKENS", 100)
    monkeypatch.setattr(fidelity, "FORWARD", 24)
    taken = [int(batch["index"][0]) for batch in fidelity._sample(data)]
    blocks = data.sizes["test"]
    assert 3 <= len(taken) <= 6 < blocks
    record, *_ = record_of(data)
    assert abs(record.fidelity["main"]["tokens"] - 100) < 24


def test_teachers_that_cannot_be_compared_are_told(data: TextData, tmp_path: Path) -> None:
    net = tiny_llama(data.vocab_size)
    other = Teacher(net, TextAdapter(net), "other")
    other.other_classes = "gives logits (7,) where the task has 320 classes or values"
    record, *_ = record_of(data, other=other)
    assert record.fidelity["other"] == {"not_compared": "it gives logits (7,) where the task has 320 classes or values"}
    assert "kl" in record.fidelity["main"]
    assert "other" not in record.samples[0]
    record.write(tmp_path)
    read = RunRecord.read(tmp_path)
    assert (read.fidelity["other"], read.samples) == (record.fidelity["other"], record.samples)
    plain = replace(record, fidelity={}, samples=[])
    add_fidelity(plain, Network(net), {}, data, Classification(), 3)
    assert (plain.fidelity, plain.samples) == ({}, [])
