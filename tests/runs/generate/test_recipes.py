"""Recipes of several rounds, and what becomes of their answers; each config of the group is run as a command."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distillery.core.errors import UserError
from distillery.core.paths import CONFIGS
from distillery.data.sources.plain_text import plain_text
from distillery.data.sources.text_files import jsonl
from distillery.data.text import TextData
from distillery.runs.generate.endpoint import Endpoint
from distillery.runs.generate.generate import Settings, generate, plan
from distillery.runs.generate.output import Outcome
from distillery.runs.generate.price import Price
from distillery.runs.generate.recipes.answers import Answers
from distillery.runs.generate.recipes.continuations import Continuations
from distillery.runs.generate.recipes.instructions import Instructions
from distillery.runs.generate.recipes.labels import Labels, read_label
from distillery.runs.generate.recipes.passages import Passages
from distillery.runs.generate.recipes.rationale import Rationale
from distillery.runs.generate.recipes.recipe import Recipe
from distillery.runs.generate.request import Answer
from distillery.runs.generate.verifiers import exact, numeric, regex
from distillery.teachers.served_client import Client
from fixtures.command_line import Cli
from fixtures.fake_server import MODEL, running
from fixtures.fake_writer import FakeWriter, Said
from fixtures.texts import write_jsonl

DEAR = Price(1.0, 2.0, "a test")  # dollars per million tokens
TOKENS = 40  # of an answer at most
SIZES: Any = {"tokenizer": "none", "batch_size": 2, "eval_batch_size": 2, "seed": 0, "val_size": 0}
SUMS = [{"prompt": f"What is {a} + 2?", "answer": str(a + 2)} for a in range(6)]


@pytest.fixture
def server() -> Iterator[FakeWriter]:
    with running(FakeWriter()) as server:
        yield server


def says(text: Callable[[str, int], str]) -> Callable[[dict[str, Any]], Said]:
    """Answers made of the last message and of how often it was asked before."""
    asked: dict[str, int] = {}

    def say(body: dict[str, Any]) -> Said:
        prompt = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        asked[prompt] = asked.get(prompt, -1) + 1
        return text(prompt, asked[prompt]), "stop", None

    return say


def endpoint(server: FakeWriter, **given: Any) -> Endpoint:
    """One request at a time, in order, so that answers are always the same."""
    return Endpoint(Client(server.url, concurrent=1, patience=1), MODEL, {"max_tokens": TOKENS}, **given)


def run(server: FakeWriter, recipe: Recipe, out: Path, **given: Any) -> Outcome:
    return generate(endpoint(server), recipe, DEAR, Settings(out, **{"budget": 5.0, "pilot": 0} | given))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def test_a_rationale_is_kept_where_its_answer_is_right(server: FakeWriter, tmp_path: Path) -> None:
    """The n-th prompt's answer is right at the n-th try. What was asked is asked once, over all rounds."""
    prompts = write_jsonl(tmp_path / "sums.jsonl", SUMS)

    def text(prompt: str, before: int) -> str:
        first = int(re.findall(r"is (\d+)", prompt)[0])
        return f"Two more than {first}.\n**Answer:** {first + 2 if before == first else 99}."

    server.say = says(text)
    recipe = Rationale(str(prompts), numeric, samples=4)
    said = plan(endpoint(server), recipe, DEAR, tmp_path / "out")
    assert "6 requests, and at most 18 in later rounds" in said
    assert not server.asked
    outcome = run(server, recipe, tmp_path / "out")
    assert outcome == {"stop": 4, "wrong answer": 0 + 1 + 2 + 3 + 4 + 4}
    assert len(server.asked) == 6 + 5 + 4 + 3
    kept = rows(tmp_path / "out" / "answers.jsonl")
    assert [(row["index"], row["sample"], row["answer"]) for row in kept] == [(n, n, str(n + 2)) for n in range(4)]
    asked, answer = kept[2]["messages"]
    assert asked["content"] == "What is 2 + 2?"
    assert answer["content"] == "Two more than 2.\n**Answer:** 4."
    assert outcome.examples["wrong answer"] == "'Two more than 1. **Answer:** 99.'"
    before = len(server.asked)
    assert run(server, recipe, tmp_path / "out") == outcome
    assert len(server.asked) == before
    server.say = says(lambda prompt, before: "Answer: 6")
    assert run(server, replace(recipe, samples=5), tmp_path / "out")["stop"] == 5
    assert len(server.asked) == before + 2  # a further round, of the two that are left


def test_reasoning_that_comes_beside_the_text_is_kept_with_it(server: FakeWriter, tmp_path: Path) -> None:
    prompts = write_jsonl(tmp_path / "sums.jsonl", SUMS[:2])
    answer = server.answer

    def thinking(body: dict[str, Any], fault: str) -> dict[str, Any]:
        found = answer(body, fault)
        found["choices"][0]["message"]["reasoning_content"] = "two and two"
        return found

    server.answer = thinking  # type: ignore[method-assign]
    server.say = says(lambda prompt, before: "Answer: 2")
    assert run(server, Rationale(str(prompts), exact), tmp_path / "out") == {"stop": 1, "wrong answer": 1}
    (kept,) = rows(tmp_path / "out" / "answers.jsonl")
    assert kept["messages"][1]["content"] == "<think>\ntwo and two\n</think>\n\nAnswer: 2"


def test_verifiers() -> None:
    assert exact(" paris. ", {"answer": "Paris"})
    assert not exact("Paris, France", {"answer": "Paris"})
    assert numeric("so 1,234.50 dollars", {"answer": "#### 1234.5"})
    assert numeric("-.5", {"answer": "-0.5"})
    assert not numeric("none", {"answer": "3"})
    assert not numeric("3.1", {"answer": "3"})
    assert numeric("3.1", {"answer": "3"}, tolerance=0.1)
    assert regex("AB12\n", {"code": r"[A-Z]+\d+"}, key="code")
    assert not regex("see AB12", {"code": r"[A-Z]+\d+"}, key="code")


@pytest.mark.parametrize(
    ("verifier", "row", "message"),
    [
        (exact, {"prompt": "a"}, r"prompt 1: there is no 'answer' to compare .* but the keys prompt"),
        (numeric, {"prompt": "a", "answer": "four"}, "prompt 1: 'answer' has no number: 'four'"),
        (regex, {"prompt": "a", "answer": "("}, "prompt 1: 'answer' is no regular expression"),
        (lambda answer, row: answer[0] == "x", SUMS[0], "prompt 0: the verifier fails with IndexError"),
    ],
)
@pytest.mark.parametrize(
    "make", [Rationale, lambda path, verifier: Answers(path, best_by="verifier", verifier=verifier)]
)
def test_a_verifier_that_fails_is_told_before_anything_is_asked(
    server: FakeWriter, tmp_path: Path, verifier: Any, row: Any, message: str, make: Any
) -> None:
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "b", "answer": "1"}, row])
    with pytest.raises(UserError, match=message):
        run(server, make(str(prompts), verifier), tmp_path / "out")
    assert not server.asked
    assert not (tmp_path / "out").exists()


def test_the_best_of_several_answers(server: FakeWriter, tmp_path: Path) -> None:
    """By the teacher's own ratings, of which some are none; or by a verifier."""
    prompts = write_jsonl(tmp_path / "sums.jsonl", SUMS[:3])
    ratings = {"0": "3", "1": "Rating: 8/10.", "2": "8", "3": "I would say 10"}

    def text(prompt: str, before: int) -> str:
        if "[Answer]" not in prompt:
            return f"{prompt} try {before}"
        place, tried = re.findall(r"is (\d)", prompt)[0], re.findall(r"try (\d)", prompt)[0]
        return "great" if place == "2" else ratings[tried]

    server.say = says(text)
    recipe = Answers(str(prompts), samples=4, best_by="judge")
    assert "12 requests, and at most 12 in later rounds" in plan(endpoint(server), recipe, DEAR, tmp_path / "out")
    outcome = run(server, recipe, tmp_path / "out")
    assert outcome == {"stop": 2, "not the best": 4, "no rating": 2 + 4}
    kept = rows(tmp_path / "out" / "answers.jsonl")
    assert [(row["index"], row["sample"], row["rating"]) for row in kept] == [(0, 1, 8), (1, 1, 8)]
    left = rows(tmp_path / "out" / "left_out.jsonl")
    assert [row["rating"] for row in left if row["index"] == 0 and "rating" in row] == [3, 8]

    server.say = says(lambda prompt, before: f"I guess {before}")
    verified = Answers(str(prompts), samples=4, best_by="verifier", verifier=numeric)
    outcome = run(server, verified, tmp_path / "verified")
    assert outcome == {"stop": 2, "not accepted": 4 + 3 + 3}  # 2 and 3, but never 4
    assert [row["sample"] for row in rows(tmp_path / "verified" / "answers.jsonl")] == [2, 3]
    with pytest.raises(UserError, match="best_by=verifier: choose one"):
        Answers(str(prompts), best_by="verifier")
    with pytest.raises(UserError, match="rates none"):
        Answers(str(prompts), best_by="judge", chat=False)


def test_the_price_of_all_rounds_is_bounded(server: FakeWriter, tmp_path: Path) -> None:
    """What a plan says is more than what is spent, if answers are as long as may be."""
    prompts = write_jsonl(tmp_path / "sums.jsonl", SUMS)
    seeds = write_jsonl(tmp_path / "seeds.jsonl", [{"prompt": f"Write about {word}."} for word in ("tea", "rain")])
    server.say = says(lambda prompt, before: f"{len(prompt)}-{before} " + "x" * (TOKENS - 8))
    for recipe in (
        Answers(str(prompts), samples=2, best_by="judge"),
        Rationale(str(prompts), exact, samples=3),
        Instructions(str(seeds), 8, generations=2, samples=2),
    ):
        out, before = tmp_path / type(recipe).__name__, len(server.asked)
        said = plan(endpoint(server), recipe, Price(1e6, 1e6), out)
        run(server, recipe, out)
        bodies = server.asked[before:]
        prompts_size = sum(len(json.dumps(body["messages"])) for body in bodies)
        dollars = float(re.findall(r"At most \$([\d,.]+)\.", said)[0].replace(",", ""))
        assert prompts_size + TOKENS * len(bodies) <= dollars
        assert f"{len(bodies):,} answered before" in plan(endpoint(server), recipe, DEAR, out)
    with pytest.raises(UserError, match="No budget is set"):  # the pilot is the first round's
        run(server, Rationale(str(prompts), exact, samples=3), tmp_path / "dear", budget=None, pilot=6)
    assert len(rows(tmp_path / "dear" / "left_out.jsonl")) == 6


def test_instructions_grow_from_seeds(server: FakeWriter, tmp_path: Path) -> None:
    """Near-duplicates, and what resembles a held-out instruction, are not kept; held-out ones are never shown."""
    poem = "Write a long and cheerful poem about tea."
    others = ("Explain how rain is made.", "Draw the dance of bees.", "Where is salt found?", "How is clay fired?")
    seeds = [{"prompt": prompt} for prompt in (poem, *others)]
    held = write_jsonl(tmp_path / "held.jsonl", [seeds[1], {"prompt": "List five rivers of the south of France."}])
    new = iter(
        [
            "Task 5: Name three uses of chalk.",
            "1. Write a long and cheerful poem about tea!",
            "List five rivers of the south of Spain.",
            "",
            "Name three uses of chalk",
            "Describe how a kite stays in the air.",
            "Explain to a child why leaves fall.",
            "Describe how a kite stays in the air, briefly.",
        ]
    )
    server.say = says(lambda prompt, before: next(new) if "Task 1:" in prompt else f"{prompt} done")
    path = write_jsonl(tmp_path / "seeds.jsonl", seeds)
    recipe = Instructions(str(path), 8, shown=3, generations=2, threshold=0.6, held_out=str(held), system="be brief")
    outcome = run(server, recipe, tmp_path / "out")
    assert outcome == {"stop": 3, "near-duplicate instruction": 4, "empty": 1}
    kept = [row["messages"] for row in rows(tmp_path / "out" / "answers.jsonl")]
    chalk, kite = "Name three uses of chalk.", "Describe how a kite stays in the air."
    assert [turns[1]["content"] for turns in kept] == [chalk, kite, "Explain to a child why leaves fall."]
    assert kept[0][0] == {"role": "system", "content": "be brief"}
    assert kept[0][2]["content"] == f"{chalk} done"
    left = rows(tmp_path / "out" / "left_out.jsonl")
    assert left[1]["like"] == "List five rivers of the south of France."
    shown = [body["messages"][0]["content"] for body in server.asked if "Task 1:" in body["messages"][0]["content"]]
    assert all("rain" not in text and "rivers" not in text for text in shown)
    assert all(len(re.findall("Task \\d:", text)) == 3 for text in shown)
    assert len(set(shown)) > 3
    assert not any("chalk" in text for text in shown[:4])
    assert any("chalk" in text for text in shown[4:])
    asked = len(server.asked)
    write_jsonl(path, [*seeds, {"prompt": "Draw a map of a small island with two harbours."}])
    server.say = says(lambda prompt, before: f"Count {len(prompt)} stones.")
    run(server, recipe, tmp_path / "out")
    changed = [body for body in server.asked[asked:] if "Task 1:" in body["messages"][-1]["content"]]
    assert 0 < len(changed) < 8  # a further seed leaves the other requests as they were
    with pytest.raises(UserError, match="all of them are held out"):
        run(server, Instructions(str(held), held_out=str(held)), tmp_path / "none")


def test_passages_over_a_grid(server: FakeWriter, tmp_path: Path) -> None:
    """Each cell once before any comes again; more passages begin with the same ones; words are sought as whole ones."""
    grid: Any = {"topics": ["tides", "owls"], "audiences": ["a child"], "forms": ["a story", "an exercise"]}
    recipe = Passages(**grid, words=["sea", "moon", "night"], required_words=2, passages=6, seed=1)
    server.say = says(
        lambda prompt, before: "By NIGHT the moon, and oversea." if "story" in prompt else "Night, moon; sea!"
    )
    outcome = run(server, recipe, tmp_path / "out")
    found = rows(tmp_path / "out" / "answers.jsonl")
    assert outcome == {"stop": 6}
    cells = [(row["topic"], row["form"]) for row in found]
    assert len(set(cells[:4])) == 4
    for row, body in zip(found, server.asked, strict=True):
        assert len(row["required_words"]) == 2
        assert row["missing_words"] == [
            word for word in row["required_words"] if word == "sea" and "story" in row["form"]
        ]
        assert f"about {row['topic']}" in "".join(each["messages"][0]["content"] for each in server.asked)
        assert "Use each of these words" in body["messages"][0]["content"]
    complete = sum(not row["missing_words"] for row in found)
    assert 0 < complete < 6
    assert outcome.remarks == {"have all required words": complete}
    asked = len(server.asked)
    run(server, replace(recipe, passages=9), tmp_path / "out")
    assert len(server.asked) == asked + 3
    assert len(plain_text(tmp_path / "out" / "answers.jsonl", test_fraction=0.3).train.inputs.first) >= 1
    for wrong, message in (
        ({"required_words": 4}, "only 3 words"),
        ({"words": ["two words"], "required_words": 1}, "is not one word"),
    ):
        with pytest.raises(UserError, match=message):
            replace(recipe, **wrong)


def test_labels_of_texts(server: FakeWriter, tmp_path: Path) -> None:
    """Rows that data=jsonl reads as they are; what is no label is left out and shown; agreement is counted."""
    texts = [{"text": f"film {number} ", "label": "neg" if number % 2 else "pos"} for number in range(8)]
    given = write_jsonl(tmp_path / "texts.jsonl", [*texts, {"text": "film 8", "label": None}])
    test = write_jsonl(tmp_path / "test.jsonl", [{"text": "good", "label": "pos"}, {"text": "bad", "label": "neg"}])
    said = ["'Good.'", "BAD", "good", "I think it is bad", "bad", "bad", "goodness", "bad\nText: next", "good"]
    server.say = says(lambda prompt, before: said[int((re.findall(r"film (\d)", prompt) or "0")[0])])
    data = TextData(lambda: jsonl(given, test=test), **SIZES)
    recipe = Labels(data, {"neg": "bad", "pos": "good"})
    outcome = run(server, recipe, tmp_path / "out")
    assert outcome == {"stop": 7, "not a label": 2}
    assert outcome.remarks == {"have the label that the data have": 5}
    assert outcome.examples == {"not a label": "'I think it is bad'"}
    assert server.asked[0]["messages"][0]["content"].startswith("Which of these labels fits the text: bad, good?")
    found = rows(tmp_path / "out" / "answers.jsonl")
    assert [row["label"] for row in found] == ["pos", "neg", "pos", "neg", "neg", "neg", "pos"]
    assert [row.get("own_label") for row in found] == ["pos", "neg", "pos", "pos", "neg", "neg", None]
    assert found[0]["text"] == "film 0 "
    assert found[0]["model"].startswith(MODEL)
    read = jsonl(tmp_path / "out" / "answers.jsonl", test=test)
    assert read.classes == ("neg", "pos")
    assert len(read.train.indices) == 7
    assert (
        run(server, Labels(data, {"neg": "bad", "pos": "good"}, split="all", chat=False), tmp_path / "all")["stop"] >= 7
    )
    assert {row["text"] for row in rows(tmp_path / "all" / "left_out.jsonl")} == {"film 3 ", "film 6 "}
    own = TextData(lambda: jsonl(given, label=None), **SIZES)  # texts alone
    assert len(next(Labels(own, ["bad", "good"], split="all").rounds(lambda _: None))) == 9
    with pytest.raises(UserError, match="these data have none"):
        run(server, Labels(own), tmp_path / "strange")
    with pytest.raises(UserError, match=r"no class 'bad'.*neg"):
        run(server, Labels(data, ["bad", "pos"]), tmp_path / "strange")
    with pytest.raises(UserError, match="call two of them the same"):
        run(server, Labels(data, {"neg": "it", "pos": "It."}), tmp_path / "strange")


def test_a_label_that_was_cut_off() -> None:
    def label(text: str, reason: str) -> str | None:
        return read_label(Answer(text, reason, MODEL, 0.0, 1, 1), {"news": "news", "letter": "newsletter", "ad": "ad"})

    assert [label("news", reason) for reason in ("stop", "length")] == ["news", None]
    assert label("newsletter", "length") == "letter"
    assert label("ads", "stop") is None


def test_documents_that_are_cut_off_are_kept_on_demand(server: FakeWriter, tmp_path: Path) -> None:
    given = write_jsonl(tmp_path / "texts.jsonl", [{"text": f"one two three {word}"} for word in "abcd"])
    server.say = lambda body: (" and so", "length" if body["prompt"].endswith("a") else "stop", None)
    test = write_jsonl(tmp_path / "test.jsonl", [{"text": "four"}])
    data = TextData(lambda: plain_text(given, test=test), pack=True, **SIZES)
    assert run(server, Continuations(data), tmp_path / "out") == {"stop": 3, "length": 1}
    assert run(server, Continuations(data, cut_off=True), tmp_path / "out") == {"stop": 4}


def test_log_probabilities_need_conversations(server: FakeWriter, tmp_path: Path) -> None:
    """Where texts are continued they are refused before anything is asked."""
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "a"}])
    writer = endpoint(server, top_logprobs=3)
    recipe, message = Answers(str(prompts), chat=False), "top_logprobs=3: servers return"
    with pytest.raises(UserError, match=message):
        plan(writer, recipe, DEAR, tmp_path / "out")
    with pytest.raises(UserError, match=message):
        generate(writer, recipe, DEAR, Settings(tmp_path / "out"))
    assert not server.asked


def test_every_config_of_the_group(server: FakeWriter, tmp_path: Path, cli: Cli) -> None:
    prompts = write_jsonl(tmp_path / "prompts.jsonl", SUMS)
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"text": f"a film {n}", "label": "ab"[n % 2]} for n in range(8)])
    server.say = says(lambda prompt, before: "a" if "film" in prompt else f"{len(prompt)} {prompt[-9:]}\nAnswer: 2")
    data = [f"data.source.path={texts}", "data.val_size=0", "data.source.test_fraction=0.25"]
    own = {
        "answers": [f"prompts={prompts}", "samples=2", "best_by=verifier", "verifier=numeric"],
        "continuations": ["data=plain_text", *data],
        "instructions": [f"seeds={prompts}", "instructions=3", f"held_out={prompts.parent / 'held.jsonl'}"],
        "labels": ["data=jsonl", *data],
        "passages": ["passages=2"],
        "rationale": [f"prompts={prompts}", "verifier._target_=fixtures.fake_writer.is_two"],
    }
    write_jsonl(tmp_path / "held.jsonl", [{"prompt": "Name a river."}])
    assert own.keys() == {path.stem for path in (CONFIGS / "generate").glob("*.yaml")}
    for name, words in own.items():
        served = [f"base_url={server.url}", f"model={MODEL}", f"out={tmp_path / name}", "concurrency=1"]
        code, said = cli("generate", f"generate={name}", *words, *served)
        assert code == 0, said
        assert rows(tmp_path / name / "answers.jsonl"), said
    for verifier in ("exact", "regex"):
        words = ["generate=rationale", f"prompts={prompts}", f"verifier={verifier}", *served, "plan=true"]
        code, said = cli("generate", *words)
        assert (code, "6 requests" in said) == (0, True), said
    code, said = cli("generate", "generate=rationale", f"prompts={prompts}", "verifier=exat", *served)
    assert (code, "exact" in said) == (2, True), said
