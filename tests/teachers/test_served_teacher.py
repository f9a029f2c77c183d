"""A teacher behind a server gives what the same network gives in this process."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from distillery.core.errors import UserError
from distillery.data.text import TextData
from distillery.losses.response.sampled_kl import SampledKL
from distillery.losses.response.topk_kd import TopKKD
from distillery.losses.signals import Signals
from distillery.models.adapters import TextAdapter
from distillery.tasks.causal_lm import CausalLM
from distillery.tasks.evaluate import evaluate
from distillery.teachers.frozen import Teacher
from distillery.teachers.served import Served, ServedTeacher, pieces, same_teacher
from distillery.teachers.served_client import Client
from fixtures.documents import HARD, batches, document_data, documents, tiny_llama, write_bpe
from fixtures.fake_server import MODEL, FakeServer, fake_server

K = 5
TEXTS = [*documents(12, longest=20), *HARD]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_bpe(tmp_path_factory.mktemp("served") / "bpe")


@pytest.fixture(scope="module")
def server(tokenizer: str) -> Iterator[FakeServer]:
    with fake_server(tiny_llama(320), AutoTokenizer.from_pretrained(tokenizer)) as server:
        yield server


@pytest.fixture(scope="module")
def data(tokenizer: str) -> TextData:
    data = document_data(tokenizer, TEXTS)
    data.setup()
    return data


def served(server: FakeServer, data: TextData, k: int = K, **settings: Any) -> ServedTeacher:
    own = Served(Client(server.url), settings.pop("model", MODEL), k, sequences=3)
    given: dict[str, Any] = {"tokenizer": data.loaded_tokenizer, "example": data.example(), "longest": 24, "tokens": 10}
    return ServedTeacher("main", own, **(given | settings))


def local(server: FakeServer) -> Teacher:
    return Teacher(server.net, TextAdapter(server.net), "main")


def test_its_signals_are_those_of_the_network(server: FakeServer, data: TextData) -> None:
    """Of packed blocks: each document is sent by itself, and entry i is of token i + 1."""
    teacher, network, task = served(server, data), local(server), CausalLM()
    task.outputs(data)
    for batch in batches(data, "train"):
        signals = teacher(batch, training=True)
        assert signals.logits.shape[-1] == 0
        mine, _ = task.rows(signals, batch)
        theirs, labelled = task.rows(network(batch), batch)
        log_p = theirs.logits.double().log_softmax(-1)
        assert mine.sparse is not None
        assert mine.sparse.log_tail is not None
        assert mine.sparse.log_p_target is not None
        torch.testing.assert_close(mine.sparse.log_p.double(), log_p.topk(K).values, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            mine.sparse.log_p.double(), log_p.gather(-1, mine.sparse.classes), rtol=1e-4, atol=1e-5
        )
        rest = log_p.scatter(-1, mine.sparse.classes, -torch.inf).logsumexp(-1)
        torch.testing.assert_close(mine.sparse.log_tail.double(), rest, rtol=1e-4, atol=1e-5)
        own = log_p.gather(-1, labelled["target"].unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(mine.sparse.log_p_target.double(), own, rtol=1e-4, atol=1e-5)


def test_losses_have_the_values_and_gradients_that_they_have_with_the_network(
    server: FakeServer, data: TextData
) -> None:
    teacher, network, task = served(server, data), local(server), CausalLM()
    task.outputs(data)
    student = tiny_llama(320, seed=1)
    batch = next(batches(data, "train"))
    for term in (
        TopKKD(k=K, missing="tail"),
        TopKKD(k=3, missing="tail", direction="reverse"),
        TopKKD(k=K, missing="renormalise"),
        SampledKL(estimator="k2"),
    ):
        found = []
        for signals in (teacher(batch, training=True), network(batch, training=True)):
            logits = student(**TextAdapter(student)(batch)[1]).logits
            ours, labelled = task.rows(Signals(logits), batch)
            values = term(ours, task.rows(signals, batch)[0], labelled)
            gradients = torch.autograd.grad(values.mean(), list(student.parameters()))
            found.append((values, *gradients))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_its_score_is_that_of_the_network(server: FakeServer, data: TextData) -> None:
    """Exactly: the loss of a token needs its own log-probability alone. So is its likeliest token."""
    task = CausalLM()
    outputs = task.outputs(data)
    mine = evaluate(served(server, data, k=1), data.test_dataloader(), task, outputs)
    theirs = evaluate(local(server), data.test_dataloader(), task, outputs)
    assert mine.score == pytest.approx(theirs.score, rel=1e-5)
    assert mine.loss == pytest.approx(theirs.loss, rel=1e-5)
    assert (mine.predicted == theirs.predicted).all()


def test_pieces_of_padded_and_packed_rows() -> None:
    """Padding on either side is in none; a piece of one token has nothing to score."""
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]])
    positions = torch.tensor([[0, 1, 2, 0], [0, 0, 1, 2], [0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    cut = [tuple(each) for each in pieces({"attention_mask": mask, "position_ids": positions})]
    assert cut == [(0, 0, 3), (1, 1, 4), (2, 0, 2), (2, 2, 4)]
    whole = [tuple(each) for each in pieces({"attention_mask": mask})]
    assert whole == [(0, 0, 3), (1, 1, 4), (2, 0, 4)]


def test_it_is_tried_before_training(server: FakeServer, data: TextData, tmp_path: Path) -> None:
    teacher = served(server, data, tokens=10**9)
    assert "served by http://127.0.0.1:" in teacher.source
    mode, cost = teacher.remarks
    assert "T = 1" in mode
    assert "logprobs_mode=raw_logprobs" in mode
    assert "expected time for the 1,000,000,000 tokens of training: " in cost
    assert cost.endswith("hours")
    asked = len(server.asked)
    teacher(data.example(), training=True)  # the wiring reads it several times
    assert len(server.asked) == asked
    assert {len(each["prompt"]) for each in server.asked[-asked:]} <= {1, 2, 3}

    card = dict(server.card)
    for change, settings, message in (
        ({}, {"model": "tinny"}, r"model=tinny: http\S+ does not serve this model\. Did you mean 'tiny'\?"),
        ({"owned_by": "llamacpp"}, {}, r"is a llama\.cpp server, which returns no log-probabilities"),
        ({"max_model_len": 24}, {}, r"data\.max_length=24: \S+ allows 24 tokens.* Set data\.max_length=23"),
    ):
        server.card = card | change
        with pytest.raises(UserError, match=message):
            served(server, data, **settings)
    server.card = card

    other = AutoTokenizer.from_pretrained(write_bpe(tmp_path / "bpe", size=300))
    with pytest.raises(UserError, match=r"The server names token 3\d\d \(.*, but the data's tokenizer has 300"):
        served(server, data, tokenizer=other)
    words = other.get_vocab()
    swapped = type(other)(tokenizer_object=other.backend_tokenizer.from_str(_rotated(other.backend_tokenizer.to_str())))
    swapped.add_tokens([f"<{number}>" for number in range(320 - len(words))])
    with pytest.raises(
        UserError,
        match=r"stand for other texts on the server: \d+ is .* there and .* here\. Its model has another tokenizer",
    ):
        served(server, data, tokenizer=swapped)


def _rotated(tokenizer: str) -> str:
    """The tokenizer with each id moved by one."""
    content = json.loads(tokenizer)
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {token: (place + 1) % len(vocabulary) for token, place in vocabulary.items()}
    content["added_tokens"] = []
    return json.dumps(content)


def test_two_identities_of_one_teacher_differ_in_their_last_digits(server: FakeServer, data: TextData) -> None:
    identity = served(server, data).identity
    *same, last = identity.split()
    assert len(same) == 9
    near, far = (" ".join([*same, f"{float(last) + by:.4f}"]) for by in (0.01, 0.2))
    assert same_teacher(identity, near)
    assert not same_teacher(identity, far)
    assert not same_teacher(identity, " ".join(["served", "another", *same[2:], last]))
    assert same_teacher("abc", "abc")
    assert not same_teacher("abc", identity)
