"""`distill-generate` with a teacher in this process: the texts are those of transformers' own generation."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from distillery.data.chat_template import ChatTemplate, chat_template
from distillery.data.sources.messages import messages
from distillery.data.sources.plain_text import plain_text
from distillery.data.text import TextData
from distillery.models.adapters import TextAdapter
from distillery.runs.generate.generate import Settings, generate
from distillery.runs.generate.local import LocalTeacher
from distillery.runs.generate.output import Outcome
from distillery.runs.generate.price import Price
from distillery.runs.generate.recipes.answers import Answers
from distillery.runs.generate.recipes.continuations import Continuations
from distillery.runs.generate.recipes.recipe import Recipe
from distillery.runs.generate.request import Request
from distillery.teachers.frozen import Teacher
from distillery.training.rollouts import Rollouts
from fixtures.command_line import Cli
from fixtures.conversations import LLAMA3, turns, write_chat_tokenizer
from fixtures.documents import END, documents, tiny_llama, write_bpe
from fixtures.texts import write_jsonl

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}" + END + "{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
ROWS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "union of"},
            {"role": "assistant", "content": "the"},
            {"role": "user", "content": "and"},
            {"role": "assistant", "content": "people"},
        ]
    },
    {"prompt": "peace and", "completion": "war"},
    {"instruction": "the \u2028 states", "output": "own"},
    {"messages": [{"role": "user", "content": "long " * 30}, {"role": "assistant", "content": "no"}]},
    {"messages": [{"role": "user", "content": "great"}, {"role": "assistant", "content": "year"}]},
]
ENDS = [0, *range(290, 320)]  # a network that has learnt nothing comes to an end, too
PROMPTS = {
    0: f"system: be brief{END}user: union of{END}assistant: ",
    1: "peace and",
    2: f"user: the \u2028 states{END}assistant: ",
    4: f"user: great{END}assistant: ",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generate")
    write_bpe(folder / "bpe")
    write_jsonl(folder / "rows.jsonl", ROWS)
    write_jsonl(folder / "test.jsonl", [{"prompt": "own", "completion": "laws"}])
    write_jsonl(folder / "texts.jsonl", [{"text": text} for text in documents(20)])
    return folder


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    net = tiny_llama(326)  # its vocabulary is padded
    return Teacher(net, TextAdapter(net))


def law(**given: Any) -> Rollouts:
    made = Rollouts(**{"new_tokens": 12, "ends": [0], "seed": 3} | given)
    made.vocabulary = 320
    return made


def local(folder: Path, teacher: Teacher, at_once: int = 8, **given: Any) -> LocalTeacher:
    tokenizer = AutoTokenizer.from_pretrained(folder / "bpe")
    return LocalTeacher(teacher, "tiny", tokenizer, law(**given), ChatTemplate(tokenizer, TEMPLATE, {}), 64, at_once)


def write(writer: LocalTeacher, recipe: Recipe, out: Path) -> Outcome:
    return generate(writer, recipe, Price(), Settings(out, pilot=2))


def rows(out: Path, *names: str) -> dict[tuple[int, int], dict[str, Any]]:
    paths = [out / name for name in names or ("answers.jsonl", "left_out.jsonl")]
    found = [json.loads(line) for path in paths if path.is_file() for line in path.read_text().split("\n")[:-1]]
    assert len({(row["index"], row["sample"]) for row in found}) == len(found)
    return {(row["index"], row["sample"]): row for row in found}


def test_greedy_texts_are_those_of_transformers(folder: Path, teacher: Teacher, tmp_path: Path) -> None:
    """Conversations up to the first answer, prompts that are continued, and beginnings of documents."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "bpe")
    own = GenerationConfig(eos_token_id=0, pad_token_id=0, max_new_tokens=12, suppress_tokens=[*range(320, 326)])

    def continued(text: str) -> tuple[str, str]:
        """The text, and its finish reason."""
        ids = tokenizer(text)["input_ids"]
        made: Any = teacher.net.generate(torch.tensor([ids]), generation_config=own)  # type: ignore[operator]
        new = made[0, len(ids) :].tolist()
        reason = "length" if new[-1] != 0 else "stop" if len(new) > 1 else "empty"
        return tokenizer.decode(new, skip_special_tokens=True), reason

    writer = local(folder, teacher, top_k=1)
    outcome = write(writer, Answers(str(folder / "rows.jsonl")), tmp_path / "chat")
    prompts = {**PROMPTS, 1: f"user: peace and{END}assistant: "}
    assert rows(tmp_path / "chat").keys() == {(place, 0) for place in prompts}
    assert (outcome.failed, sum(outcome.values())) == (1, 4)
    (failed,) = [json.loads(line) for line in (tmp_path / "chat" / "failed.jsonl").read_text().splitlines()]
    assert "more than the 64 positions of the teacher" in failed["reason"]
    for (place, _), row in rows(tmp_path / "chat").items():
        text, reason = continued(prompts[place])
        assert (row["messages"][-1], row["finish_reason"]) == ({"role": "assistant", "content": text}, reason)
        assert len(row["messages"]) == (3 if place == 0 else 2)

    given = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "peace and"}])
    write(writer, Answers(str(given), chat=False), tmp_path / "text")
    (row,) = rows(tmp_path / "text").values()
    assert (row["prompt"], row["completion"]) == ("peace and", continued("peace and")[0])

    sizes: Any = {"batch_size": 2, "eval_batch_size": 2, "seed": 0, "val_size": 0}
    plain = TextData(lambda: plain_text(folder / "texts.jsonl"), "none", pack=True, **sizes)
    write(writer, Continuations(plain, prompt_words=5), tmp_path / "plain")
    written = rows(tmp_path / "plain")
    assert len(written) == len(plain.training_texts())
    for (place, _), row in list(written.items())[:4]:
        beginning = " ".join(documents(20)[place].split()[:5])
        assert row["text"] == beginning + continued(beginning)[0]


def test_prompts_begin_once(tmp_path: Path) -> None:
    """Whether the chat template or the tokenizer writes the token that begins a text."""
    tokenizer = AutoTokenizer.from_pretrained(write_chat_tokenizer(tmp_path, LLAMA3, "<|eot_id|>", begins=True))
    net = tiny_llama(326)
    writer = LocalTeacher(
        Teacher(net, TextAdapter(net)), "tiny", tokenizer, law(), chat_template(tokenizer, None, None)
    )
    begin = tokenizer.bos_token_id
    for request in (Request(0, 0, messages=turns("a", "b")[:1]), Request(0, 0, text="a")):
        ids = writer.prompt(request)
        assert (ids[0], ids.count(begin)) == (begin, 1)


def test_a_stopped_run_is_continued(folder: Path, teacher: Teacher, tmp_path: Path) -> None:
    """Each text is a function of the seed, the prompt and its number, whatever is written beside it."""
    recipe = Answers(str(folder / "rows.jsonl"), samples=3)
    counts = write(local(folder, teacher, 5, ends=ENDS), recipe, tmp_path / "a")
    whole = {key: {**row, "created": ""} for key, row in rows(tmp_path / "a").items()}
    assert len(whole) == 12
    assert counts["stop"] == len(rows(tmp_path / "a", "answers.jsonl")) > 0
    assert len({row["messages"][-1]["content"] for row in whole.values()}) > 8
    write(local(folder, teacher, 1, ends=ENDS), Answers(str(folder / "rows.jsonl")), tmp_path / "b")
    first = rows(tmp_path / "b")
    assert write(local(folder, teacher, 2, ends=ENDS), recipe, tmp_path / "b") == counts
    again = rows(tmp_path / "b")
    assert {key: {**row, "created": ""} for key, row in again.items()} == whole
    assert {key: again[key] for key in first} == first  # they were not written anew
    read = messages(tmp_path / "b" / "answers.jsonl", test=folder / "test.jsonl")
    assert len(read.train.indices) == counts["stop"]
    seeded = write(local(folder, teacher, 8, ends=ENDS, seed=4), recipe, tmp_path / "b")
    assert sum(seeded.values()) == 12
    assert rows(tmp_path / "b") != again


@pytest.mark.slow
def test_the_command(cli: Cli, folder: Path, tmp_path: Path) -> None:
    """And a student that learns what was written."""
    net: Any = tiny_llama(320)
    net.save_pretrained(tmp_path / "teacher")
    AutoTokenizer.from_pretrained(folder / "bpe").save_pretrained(tmp_path / "teacher")
    own = [f"data.source.path={folder / 'texts.jsonl'}", "data.source.test_fraction=0.2"]
    teacher = ["model/teacher=causal_lm", f"teachers.main.net.model={tmp_path / 'teacher'}"]
    given = ["generate=continuations", *own, *teacher, "samples=3"]
    code, said = cli("generate", *given, "max_tokens=40", "prompt_words=6", "out=written", "temperature=0.7")
    assert code == 0, said
    assert "data.source.path=written/answers.jsonl" in said.replace("\n", " ")
    small = ["student.net.config.hidden_size=16", "student.net.config.num_attention_heads=2"]
    small += ["student.net.config.num_key_value_heads=1", "trainer.max_epochs=1", "logger=none", "hydra.run.dir=run"]
    run = ["data=plain_text", "data.source.path=written/answers.jsonl", f"data.source.test={folder / 'texts.jsonl'}"]
    run += [f"data.tokenizer={tmp_path / 'teacher'}", "data.max_length=32", "task=causal_lm", "data.batch_size=2"]
    code, said = cli("train", *run, "model/student=causal_lm", "model/teacher=none", "optim=adamw", *small)
    assert code == 0, said
    assert "test bits per byte" in said
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "peace"}])
    for words, message in (
        (["generate=continuations", *own, "model/teacher=ema"], "choose a teacher that can write"),
        ([*given, "samples=0"], "samples=0: it must be a whole number of at least 1"),
        ([*teacher, f"prompts={prompts}"], "has no chat template"),
        ([*teacher, f"prompts={prompts}", "chat=false", "top_logprobs=3"], "kept of a served teacher"),
    ):
        code, said = cli("generate", *words, "out=other")
        assert (code, message in said.replace("\n", " ")) == (2, True), said
    code, said = cli(
        "generate", *teacher, f"prompts={prompts}", "chat=false", "out=other", "temperature=0", "max_tokens=9"
    )
    assert code == 0, said
