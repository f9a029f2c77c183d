"""`distill-generate` with a model behind a server that fails in all ways: nothing is bought twice, nothing is lost."""

import json
import math
import resource
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillery.core.errors import UserError
from distillery.data.sources.messages import messages
from distillery.runs.generate.endpoint import Endpoint
from distillery.runs.generate.generate import Settings, generate, plan
from distillery.runs.generate.output import Outcome
from distillery.runs.generate.pace import Pace
from distillery.runs.generate.price import Budget, Price, expected_sum, price_of
from distillery.runs.generate.recipes.answers import Answers
from distillery.teachers.served_client import Client, ServerError
from fixtures.command_line import Cli
from fixtures.fake_server import MODEL, running
from fixtures.fake_writer import FakeWriter, echo
from fixtures.texts import write_jsonl

LAW = {"temperature": 0.5, "max_tokens": 10}
FREE, DEAR = Price(), Price(1.0, 2.0, "a test")  # dollars per million tokens


@pytest.fixture
def server() -> Iterator[FakeWriter]:
    with running(FakeWriter()) as server:
        yield server


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"word{number}", "id": number} for number in range(30)])


def endpoint(server: FakeWriter, **given: Any) -> Endpoint:
    settings = {"timeout": 0.5, "patience": 30, "concurrent": 4, "sleep": lambda seconds: time.sleep(seconds / 100)}
    return Endpoint(Client(server.url, **settings | given), MODEL, LAW)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def run(server: FakeWriter, prompts: Path, out: Path, price: Price = FREE, **given: Any) -> Outcome:
    recipe = Answers(str(prompts), given.pop("samples", 1), given.pop("system", None))
    return generate(endpoint(server), recipe, price, Settings(out, **{"pilot": 5} | given))


def test_each_answer_is_bought_once_through_all_faults(server: FakeWriter, prompts: Path, tmp_path: Path) -> None:
    """429 with and without Retry-After, errors, stalls, broken connections, half JSON and nonsense."""
    server.faults.extend(["429", "", "429_silent", "500", "", "drop", "stall", "truncated", "nonsense", "", "500"])
    out = tmp_path / "out"
    assert run(server, prompts, out, samples=2, licence="none") == {"stop": 60}
    found = rows(out / "answers.jsonl")
    assert [(row["index"], row["sample"]) for row in found] == [(at, each) for at in range(30) for each in (0, 1)]
    for row in found:
        asked, said = row["messages"]
        assert asked == {"role": "user", "content": f"word{row['id']}"}
        assert said == {"role": "assistant", "content": f"{asked['content'][::-1]} 0.5"}
        assert (row["model"], row["system_fingerprint"]) == (f"{MODEL}-2026-01-01", "fp_1")
        assert row["parameters"] == LAW
        assert row["usage"]["completion_tokens"] == 2
        assert row["licence"] == "none"
    asked = len(server.asked)
    assert run(server, prompts, out, samples=2) == {"stop": 60}
    assert len(server.asked) == asked  # nothing is asked for again
    write_jsonl(prompts, [{"prompt": f"word{number}", "id": number} for number in range(40)])
    assert run(server, prompts, out, samples=2) == {"stop": 80}
    assert len(server.asked) == asked + 20
    data = messages(out / "answers.jsonl")
    assert len(data.train.inputs.first) == 40  # of each prompt both samples are the same text


def test_prompts_in_all_formats(server: FakeWriter, tmp_path: Path) -> None:
    """What is sent is what stands before the first answer; other fields come along."""
    given = [
        {"prompt": "a"},
        {"messages": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "x"}], "topic": "t"},
        {"instruction": "c", "input": "d"},
        {"conversations": [{"from": "human", "value": "e"}], "system": "own"},
        {"prompt": [{"role": "user", "content": "f"}], "completion": [{"role": "assistant", "content": "y"}]},
    ]
    prompts = write_jsonl(tmp_path / "prompts.jsonl", given)
    run(server, prompts, tmp_path / "out", system="be brief")
    sent = {body["messages"][-1]["content"]: body["messages"][:-1] for body in server.asked}
    brief = [{"role": "system", "content": "be brief"}]
    assert sent == {"a": brief, "b": brief, "c\nd": brief, "e": [{"role": "system", "content": "own"}], "f": brief}
    assert rows(tmp_path / "out" / "answers.jsonl")[1]["topic"] == "t"
    write_jsonl(prompts, [{"prompt": "a"}, {"text": "b"}])
    with pytest.raises(UserError, match=r"line 2: no prompt, but the keys text"):
        run(server, prompts, tmp_path / "other")


def test_texts_without_an_end_are_left_out(server: FakeWriter, prompts: Path, tmp_path: Path) -> None:
    reasons = {"word1": ("half", "length", None), "word2": ("", "stop", None), "word3": ("", "content_filter", None)}
    server.say = lambda body: reasons.get(body["messages"][-1]["content"]) or echo(body)
    assert run(server, prompts, tmp_path / "out") == {"stop": 27, "length": 1, "empty": 1, "content_filter": 1}
    left = rows(tmp_path / "out" / "left_out.jsonl")
    assert [(row["id"], row["finish_reason"]) for row in left] == [(1, "length"), (2, "empty"), (3, "content_filter")]
    assert len(rows(tmp_path / "out" / "answers.jsonl")) == 27


def test_the_budget_is_never_passed(server: FakeWriter, prompts: Path, tmp_path: Path) -> None:
    """What is under way counts at its bound, answers at their cost. Resuming knows what is spent."""
    bound = DEAR.of(len('{"role": "user", "content": "word29"}') + 16, LAW["max_tokens"])
    cost = DEAR.of(4, 2)  # four words in the JSON of the prompt, two in the answer
    outcome = run(server, prompts, tmp_path / "out", DEAR, budget=10 * cost + bound)
    bought = outcome["stop"]
    assert 8 <= bought <= 11
    assert outcome.left == 30 - bought
    assert len(server.asked) == bought
    again = run(server, prompts, tmp_path / "out", DEAR, budget=10 * cost + bound)
    assert again["stop"] - bought <= 3  # what was reserved is free again
    assert run(server, prompts, tmp_path / "out", DEAR, budget=1.0) == {"stop": 30}
    with pytest.raises(UserError, match="No budget is set"):
        run(server, prompts, tmp_path / "new", DEAR)
    assert len(rows(tmp_path / "new" / "answers.jsonl")) == 5  # the pilot's answers count


def test_a_request_that_is_refused_leaves_the_others(server: FakeWriter, prompts: Path, tmp_path: Path) -> None:
    """A prompt past the context is told by name and is not stored; 20 refusals in a row end the run."""
    server.faults.extend(["", "400"])
    outcome = run(server, prompts, tmp_path / "out")
    assert (outcome["stop"], outcome.failed, outcome.left) == (29, 1, 0)
    (failed,) = rows(tmp_path / "out" / "failed.jsonl")
    assert failed["reason"].endswith("prompt_logprobs=5 exceeds max_logprobs=4")
    assert run(server, prompts, tmp_path / "out") == {"stop": 30}
    assert not (tmp_path / "out" / "failed.jsonl").exists()
    server.faults.extend(["400"] * 100)
    with pytest.raises(UserError, match="20 requests in a row have failed"):
        run(server, prompts, tmp_path / "all", pilot=0)
    assert len(server.asked) < 30 + 2 + 30
    server.faults.clear()
    assert run(server, prompts, tmp_path / "all") == {"stop": 30}


@pytest.mark.parametrize(("fault", "said"), [("401", r"HTTP 401: Incorrect API key: \*\*\*"), ("quota", "your quota")])
def test_what_cannot_pass_ends_the_run_and_loses_nothing(
    server: FakeWriter, prompts: Path, tmp_path: Path, fault: str, said: str
) -> None:
    """The key is in no message and in no file."""
    server.faults.extend([""] * 8 + [fault] * 100)
    writer, settings = endpoint(server, key="sk-secret"), Settings(tmp_path / "out")
    with pytest.raises(ServerError, match=said):
        generate(writer, Answers(str(prompts)), FREE, settings)
    assert len(server.asked) < 20
    assert server.headers["Authorization"] == "Bearer sk-secret"
    assert len(rows(tmp_path / "out" / "answers.jsonl")) >= 5
    assert all(b"sk-secret" not in path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    server.faults.clear()
    before = len(server.asked)
    assert run(server, prompts, tmp_path / "out") == {"stop": 30}
    assert len(server.asked) - before <= 25


def test_a_folder_keeps_to_its_recipe_and_model(server: FakeWriter, prompts: Path, tmp_path: Path) -> None:
    run(server, prompts, tmp_path / "out")
    other = endpoint(server)
    other.name = "other"
    with pytest.raises(UserError, match=r"answers of another model: tiny, not other.*out="):
        generate(other, Answers(str(prompts)), FREE, Settings(tmp_path / "out"))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "answers.sqlite").write_text("something else " * 100)
    with pytest.raises(UserError, match="not a database"):
        run(server, prompts, tmp_path / "foreign")
    with pytest.raises(UserError, match=r"model=tinny: .* does not serve this model. Did you mean 'tiny'"):
        Endpoint(Client(server.url), "tinny", LAW)
    with pytest.raises(ServerError, match="Is the server running"):
        Endpoint(Client("http://127.0.0.1:1", timeout=1), MODEL, LAW)


def test_a_plan_asks_nothing(server: FakeWriter, prompts: Path, tmp_path: Path) -> None:
    run(server, prompts, tmp_path / "out", pilot=0)
    asked = len(server.asked)
    write_jsonl(prompts, [{"prompt": "word0", "id": 0}, {"prompt": "é" * 100}])
    said = plan(endpoint(server), Answers(str(prompts)), DEAR, tmp_path / "out")
    assert "2 requests, 1 answered before" in said
    most = 16 + len('{"role": "user", "content": ""}') + 200
    assert f"Prompts: at most {most} tokens." in said
    assert "Answers: at most 10 tokens." in said
    assert len(server.asked) == asked


def test_price_of_a_model() -> None:
    table = {"date": "2026-01-01", "source": "x", "models": {"gpt-4o": {"input": 2, "output": 10}}}
    table["models"] |= {"gpt-4o-mini": {"input": 0.15, "output": 0.6}}
    assert price_of("openai/gpt-4o-mini-2024-07-18", None, table).output == 0.6
    assert price_of("gpt-4o", None, table).of(1_000_000, 500_000) == 7.0
    assert price_of("gpt-4o-audio", None, table).free
    assert price_of("llama", {"input": 1, "output": 3}, table).output == 3
    assert price_of("gpt-4o-mini", None).output > 0


def test_the_interval_of_a_forecast_holds_for_95_percent() -> None:
    """Of 2,000 pilots of 12 answers with lognormal lengths near a normal law, and the sums of the 100 that follow."""
    draws = np.random.default_rng(0).normal(100, 20, (2000, 112))
    inside = 0
    for values in draws:
        found = expected_sum(values[:12].tolist(), 100)
        inside += found.low <= values[12:].sum() <= found.high
    assert 0.935 < inside / 2000 < 0.965
    assert expected_sum([3.0], 2) == (6.0, 0.0, math.inf)


def test_pace_and_budget() -> None:
    now, slept = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    pace = Pace(60, 600, sleep, lambda: now[0])
    for _ in range(120):
        pace.wait(1)
    assert now[0] == pytest.approx(60)  # a minute's requests at once, then one a second
    pace.correct(1, 601)  # the last one was longer than expected
    pace.wait(0)
    assert now[0] >= 60 + 1
    assert Pace(None, None, sleep).wait(1e9) is None
    budget = Budget(1.0, 0.4)
    assert budget.reserve(0.5)
    budget.settle(0.5, 0.1)
    assert not budget.reserve(0.51)
    assert budget.reserve(0.5)


@pytest.mark.slow
def test_a_killed_process_loses_at_most_the_requests_under_way(server: FakeWriter, tmp_path: Path) -> None:
    """SIGKILL at 50 moments of one job of 2,000 prompts; each process goes on where the one before was killed."""
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"word{number}"} for number in range(2000)])
    server.seconds, out = 0.01, tmp_path / "out"
    moments = np.random.default_rng(0).integers(1, 30, 50).tolist()  # in requests since the process has begun
    answered = [0]
    for moment in moments:
        before = len(server.asked)
        process = get_context("fork").Process(target=run, args=(server, prompts, out))
        process.start()
        while len(server.asked) < before + moment:
            assert process.is_alive()
            time.sleep(0.001)
        process.kill()
        process.join()
        with closing(sqlite3.connect(out / "answers.sqlite")) as base:
            answered.append(base.execute("SELECT COUNT(*) FROM answers").fetchone()[0])
    assert answered == sorted(answered)
    assert answered[-1] >= sum(moments) - 5 * len(moments)
    assert run(server, prompts, out) == {"stop": 2000}
    assert len(rows(out / "answers.jsonl")) == 2000
    assert 2000 <= len(server.asked) <= 2000 + 4 * len(moments)


@pytest.mark.parametrize("kilobytes", [40, 400])
def test_a_full_disk_loses_no_answer(server: FakeWriter, tmp_path: Path, kilobytes: int) -> None:
    """No file may grow past the limit: the store is full in the middle, or the files that are written of it at last."""
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"word{number}"} for number in range(60)])
    server.say, out = (
        lambda body: (f"{body['messages'][-1]['content']} " + "long " * 2000, "stop", None),
        tmp_path / "out",
    )
    context = get_context("fork")
    said: Any = context.SimpleQueue()

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, kilobytes * 1024))
        try:
            run(server, prompts, out)
        except UserError as error:
            said.put(str(error))

    process = context.Process(target=limited)
    process.start()
    message = said.get()
    process.join()
    assert "Make room on the disk" in message
    with closing(sqlite3.connect(out / "answers.sqlite")) as base:
        kept = base.execute("SELECT COUNT(*) FROM answers").fetchone()[0]
    asked = len(server.asked)
    assert asked - 5 <= kept <= asked  # at most the requests under way are lost
    assert run(server, prompts, out) == {"stop": 60}
    assert len(server.asked) == asked + 60 - kept


def test_the_command(server: FakeWriter, prompts: Path, tmp_path: Path, cli: Cli) -> None:
    """The line of the guide. What has no price counts as free."""
    out = tmp_path / "out"
    words = [f"prompts={prompts}", f"base_url={server.url}/v1", f"model={MODEL}", "concurrency=3", f"out={out}"]
    words += ["max_tokens=7", "temperature=0.2"]
    code, said = cli("generate", "generate=answers", *words, "budget=5", "parameters.reasoning_effort=low")
    assert code == 0
    assert "counts as free" in said
    assert f"{out}/answers.jsonl: 30 texts" in said
    assert server.most_at_once <= 3
    assert (server.asked[-1]["max_tokens"], server.asked[-1]["reasoning_effort"]) == (7, "low")
    assert rows(out / "answers.jsonl")[0]["messages"][1]["content"].endswith("0.2")
    code, said = cli("generate", *words, "parameters.reasoning_effort=low", "plan=true")
    assert (code, "30 requests, 30 answered before" in said) == (0, True)
    code, said = cli("generate", *words, "pilot=-1")
    assert (code, "pilot" in said) == (2, True)
    server.faults.extend(["400"] * 2)
    code, said = cli("generate", *words, "temperature=0.3")
    assert (code, "failed.jsonl" in said) == (1, True)
