"""Requests to a server on loopback that fails in all ways: what is tried again, and what is told at once."""

import time
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch

from distillery.core.errors import UserError
from distillery.teachers.served_answers import Scores, read_answer
from distillery.teachers.served_client import Client, ServerError, _Slots
from fixtures.documents import tiny_llama
from fixtures.fake_server import MODEL, FakeServer, fake_server

K = 4
TEXTS = [[5, 6, 7, 8, 9, 10], [11, 12, 13]]
PATH = "/v1/completions"


@pytest.fixture(scope="module")
def running() -> Iterator[FakeServer]:
    with fake_server(tiny_llama(320)) as server:
        yield server


@pytest.fixture
def server(running: FakeServer) -> FakeServer:
    running.faults.clear()
    running.asked.clear()
    running.most_at_once = 0
    return running


class Clock:
    """Time that passes only while something sleeps."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, list[float]()

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)


def client(server: FakeServer, clock: Clock | None = None, **settings: Any) -> Client:
    clock, given = clock or Clock(), {"timeout": 0.2, "patience": 100} | settings
    return Client(server.url, sleep=clock.sleep, clock=lambda: clock.now, **given)


def body(*texts: list[int], k: int = K) -> Mapping[str, Any]:
    return {"model": MODEL, "prompt": list(texts or TEXTS), "prompt_logprobs": k, "max_tokens": 1}


def same(scores: Scores, server: FakeServer, ids: list[int]) -> bool:
    """Whether they are those of the local model, text by text."""
    expected = Scores.read(server.scored(ids, K), ids, K)
    return all(bool((mine == theirs).all()) for mine, theirs in zip(scores, expected, strict=True))


def test_what_may_pass_is_tried_again_with_longer_and_longer_waits(server: FakeServer) -> None:
    clock = Clock()
    server.faults.extend(["500", "drop", "stall", "429", "truncated", "short", ""])
    (scores,) = client(server, clock).post_all(PATH, [body()], read_answer)
    assert all(same(*each) for each in zip(scores, [server] * 2, TEXTS, strict=True))
    assert len(server.asked) == 7
    assert len(clock.slept) == 4  # a wrong answer is asked again at once
    for waited, least in zip(clock.slept, (1, 2, 4, 8), strict=True):
        assert least <= waited <= 1.5 * least
    server.faults.extend(["429", ""])
    clock.slept.clear()
    client(server, clock).post_all(PATH, [body()], read_answer)
    assert 3 <= clock.slept[0] <= 4.5  # what it asks for, in place of 1


def test_while_it_fails_one_request_at_a_time_tries_it(server: FakeServer) -> None:
    """Several at once fail together, which is one failure; afterwards the others follow together again."""
    clock = Clock()
    server.faults.extend(["500"] * 6)
    bodies = [body([number, 7, 8]) for number in range(12)]
    found = client(server, clock, concurrent=4, timeout=10).post_all(PATH, bodies, lambda sent, answer: sent["prompt"])
    assert found == [each["prompt"] for each in bodies]
    assert server.most_at_once <= 4
    assert 2 <= len(clock.slept) <= 6  # 6 failures, up to 4 of which were one
    for before, after in pairwise(clock.slept):
        assert after > before


def test_a_crowded_server_is_asked_less() -> None:
    """Half as much, once for requests that were under way together; a round of answers raises the limit by one."""
    slots = _Slots(8)
    taken = [slots.take() for _ in range(8)]
    for each in taken[:4]:
        slots.give(each, crowded=True)
    assert slots.limit == 4
    for each in taken[4:]:
        slots.give(each, answered=True)
    assert 4.8 < slots.limit <= 5
    slots.give(slots.take(), crowded=True)
    assert 2.4 < slots.limit <= 2.5
    for _ in range(100):
        slots.give(slots.take(), answered=True)
    assert slots.limit == 8
    for _ in range(9):
        slots.give(slots.take(), crowded=True)
    assert slots.limit == 1


def test_it_gives_up_when_patience_ends_and_sends_nothing_more(server: FakeServer) -> None:
    clock = Clock()
    server.faults.extend(["500"] * 1000)
    asking = client(server, clock, concurrent=2)
    with pytest.raises(
        ServerError, match=r"has not answered for 1\d\d s: HTTP 500: Internal Server Error\. When it works"
    ):
        asking.post_all(PATH, [body() for _ in range(50)], read_answer)
    assert max(clock.slept) <= 90
    sent = len(server.asked)
    assert sent < 30
    with pytest.raises(ServerError, match="not sent, because another request has failed"):
        asking.post_all(PATH, [body()], read_answer)
    assert len(server.asked) <= sent + 1  # another request may have been under way
    server.faults.clear()
    server.faults.extend(["429"])
    with pytest.raises(ServerError, match="asks to wait 3 s"):
        client(server, clock, patience=2).post_all(PATH, [body()], read_answer)


def test_a_refusal_is_told_at_once_with_the_servers_words(server: FakeServer) -> None:
    server.faults.extend(["400"])
    with pytest.raises(ServerError, match=r"refused the request: HTTP 400: prompt_logprobs=5 exceeds max_logprobs=4"):
        client(server).post_all(PATH, [body()], read_answer)
    assert len(server.asked) == 1
    server.faults.extend(["none"])
    with pytest.raises(ServerError, match=r"returns no log-probabilities (.|\n)*llama\.cpp"):
        client(server).post_all(PATH, [body()], read_answer)
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("truncated", "not complete JSON"),
        ("short", r"\d+ log-probabilities for \d+ tokens"),
        ("ids", r"was sent as id \d+, but its log-probabilities are for other ids"),
        ("model", "model 'another' answered instead of 'tiny'"),
        ("first", "the first token has a log-probability"),
        ("few", r"3 log-probabilities for token \d, but 4 were requested"),
        ("positive", "has the log-probability .* serve with --logprobs-mode raw_logprobs"),
        ("mass", "add up to"),
        ("infinite", "the log-probability -inf"),
        ("lost", "1 answers for 2 texts"),
        ("other_prompt", "other token ids than those that were sent"),
    ],
)
def test_a_server_that_lies_is_found_out(server: FakeServer, fault: str, message: str) -> None:
    """Once may be an accident, three times is none."""
    likely = int(server.net(input_ids=torch.tensor([[5]])).logits[0, 0].argmax())
    sent = body([5, likely], TEXTS[1])  # the last token of the first text is among the likeliest: k entries
    server.faults.extend([fault] * 2)
    assert len(client(server).post_all(PATH, [sent], read_answer)[0]) == 2
    server.faults.extend([fault] * 3)
    with pytest.raises(ServerError, match=f"gave 3 invalid answers: .*{message}"):
        client(server).post_all(PATH, [sent], read_answer)


def test_requests_run_side_by_side_and_the_answers_keep_their_order(server: FakeServer) -> None:
    bodies = [body([number, number + 1, 40]) for number in range(20)]
    found = client(server, concurrent=3, timeout=60).post_all(PATH, bodies, read_answer)
    assert all(same(scores[0], server, each["prompt"][0]) for scores, each in zip(found, bodies, strict=True))
    assert server.most_at_once <= 3


def test_the_key_is_sent_and_a_url_must_be_one(server: FakeServer) -> None:
    asking = Client(server.url + "/v1/", key="secret")
    assert [each["id"] for each in asking.models()] == [MODEL]
    assert server.headers["Authorization"] == "Bearer secret"
    for url in ("localhost:8000", "ftp://host", "http://", ""):
        with pytest.raises(UserError, match="must be the URL of a server"):
            Client(url)
    with pytest.raises(UserError, match="api_key_env"):
        Client("http://me:secret@host:8000")
    start = time.monotonic()
    with pytest.raises(ServerError, match=r"Connection refused\. Is the server running"):
        Client("http://127.0.0.1:9").models()
    assert time.monotonic() - start < 1
