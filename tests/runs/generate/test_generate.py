"""`distill-generate`: the texts are those of transformers' own generation, and a stopped run is continued."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from distillery.core.errors import UserError
from distillery.data.sources.messages import messages
from distillery.data.sources.plain_text import plain_text
from distillery.data.text import TextData
from distillery.models.adapters import TextAdapter
from distillery.runs.generate.generate import write_texts
from distillery.runs.generate.prompts import prompts_of
from distillery.teachers.frozen import Teacher
from distillery.training.rollouts import Rollouts
from fixtures.command_line import Cli
from fixtures.conversations import LLAMA3, chat_data, turns, write_chat_tokenizer
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


def conversations(folder: Path) -> TextData:
    return served(folder, lambda: messages(folder / "rows.jsonl", test=folder / "test.jsonl"), template=TEMPLATE)


def served(folder: Path, source: Any, **given: Any) -> TextData:
    sizes: Any = {"batch_size": 2, "eval_batch_size": 2, "seed": 0, "val_size": 0}
    return TextData(source, str(folder / "bpe"), pack=True, **sizes, **given)


def law(**given: Any) -> Rollouts:
    made = Rollouts(**{"new_tokens": 12, "ends": [0], "seed": 3} | given)
    made.vocabulary = 320
    return made


def rows(*paths: Path) -> dict[tuple[int, int], dict[str, Any]]:
    found = [json.loads(line) for path in paths if path.is_file() for line in path.read_text().split("\n")[:-1]]
    assert len({(row["index"], row["sample"]) for row in found}) == len(found)
    return {(row["index"], row["sample"]): row for row in found}


def test_greedy_texts_are_those_of_transformers(folder: Path, teacher: Teacher, tmp_path: Path) -> None:
    """Conversations up to the first answer, prompts, and beginnings of documents."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "bpe")
    own = GenerationConfig(eos_token_id=0, pad_token_id=0, max_new_tokens=12, suppress_tokens=[*range(320, 326)])

    def continued(ids: list[int]) -> list[int]:
        made: Any = teacher.net.generate(torch.tensor([ids]), generation_config=own)  # type: ignore[operator]
        return made[0, len(ids) :].tolist()

    out = tmp_path / "texts.jsonl"
    counts = write_texts(teacher, conversations(folder), law(top_k=1), out, positions=64)
    given = rows(out, tmp_path / "texts.left_out.jsonl")
    assert {index for index, _ in given} == PROMPTS.keys()
    assert counts["too long"] == 1
    assert counts["stop"] + counts["length"] + counts["empty"] == 4
    for (index, _), row in given.items():
        expected = continued(tokenizer(PROMPTS[index])["input_ids"])
        text = tokenizer.decode(expected, skip_special_tokens=True)
        assert row["finish_reason"] == ("length" if expected[-1] != 0 else "stop" if len(expected) > 1 else "empty")
        assert row["tokens"] == len(expected)
        if index == 1:
            assert (row["prompt"], row["completion"]) == ("peace and", text)
        else:
            assert row["messages"][-1] == {"role": "assistant", "content": text}
            assert len(row["messages"]) == (3 if index == 0 else 2)

    plain = served(folder, lambda: plain_text(folder / "texts.jsonl"))
    write_texts(teacher, plain, law(top_k=1), tmp_path / "plain.jsonl", prompt_tokens=5)
    written = rows(tmp_path / "plain.jsonl", tmp_path / "plain.left_out.jsonl")
    assert len(written) == len(plain.training_texts())
    for (index, _), row in list(written.items())[:4]:
        ids = tokenizer(documents(20)[index])["input_ids"][:5]
        assert row["text"] == tokenizer.decode([*ids, *continued(ids)], skip_special_tokens=True)


def test_prompts_begin_as_the_data_do(tmp_path: Path) -> None:
    """Once, whether the chat template or the tokenizer writes the token that begins a text."""
    llama = write_chat_tokenizer(tmp_path / "llama", LLAMA3, "<|eot_id|>", begins=True)
    train = write_jsonl(tmp_path / "all.jsonl", [{"messages": turns("a", "b")}, {"prompt": "a", "completion": "b"}])
    test = write_jsonl(tmp_path / "test.jsonl", [{"messages": turns("c", "d")}])
    data = chat_data(tmp_path, llama, [], source=lambda: messages(train, test=test))
    begin = data.loaded_tokenizer.bos_token_id
    found = [prompt.ids for prompt in prompts_of(data, 8)]
    assert [(ids[0], ids.count(begin)) for ids in found] == [(begin, 1), (begin, 1)]


def test_a_stopped_run_is_continued(folder: Path, teacher: Teacher, tmp_path: Path) -> None:
    """Each text is a function of the seed, the prompt and its number; a torn line is written again."""
    paths = {name: (tmp_path / f"{name}.jsonl", tmp_path / f"{name}.left_out.jsonl") for name in ("a", "b")}
    counts = write_texts(teacher, conversations(folder), law(ends=ENDS), paths["a"][0], 64, samples=3, at_once=5)
    whole = rows(*paths["a"])
    assert len(whole) == 12
    assert counts["stop"] == len(rows(paths["a"][0])) > 0
    assert len({json.dumps(row.get("messages", row.get("completion"))) for row in whole.values()}) > 8
    write_texts(teacher, conversations(folder), law(ends=ENDS), paths["b"][0], 64, samples=1, at_once=1)
    torn = paths["b"][0].read_bytes()[:-9]
    paths["b"][0].write_bytes(torn)
    before = rows(paths["b"][0])
    again = write_texts(teacher, conversations(folder), law(ends=ENDS), paths["b"][0], 64, samples=3, at_once=2)
    assert rows(*paths["b"]) == whole
    assert again == counts
    assert list(rows(paths["b"][0]))[: len(before)] == list(before)
    read = messages(paths["b"][0], test=folder / "test.jsonl")
    assert len(read.train.indices) == counts["stop"]

    for other, settings, message in (
        (tiny_llama(326, seed=1), {}, r"b\.about\.json says that the existing texts have another teacher_sha256"),
        (teacher.net, {"temperature": 0.5}, r"another temperature: 1\.0, not 0\.5\. Write to another file"),
    ):
        own, given = Teacher(other, TextAdapter(other)), law(ends=ENDS, **settings)
        with pytest.raises(UserError, match=message):
            write_texts(own, conversations(folder), given, paths["b"][0], 64)
    assert rows(*paths["b"]) == whole


@pytest.mark.slow
def test_the_command(cli: Cli, folder: Path, tmp_path: Path) -> None:
    """And a student that learns what was written."""
    net: Any = tiny_llama(320)
    net.save_pretrained(tmp_path / "teacher")
    AutoTokenizer.from_pretrained(folder / "bpe").save_pretrained(tmp_path / "teacher")
    own = [f"data.source.path={folder / 'texts.jsonl'}", "data.source.test_fraction=0.2"]
    given = ["data=plain_text", *own, f"teachers.main.net.model={tmp_path / 'teacher'}", "samples=3"]
    code, said = cli("generate", *given, "new_tokens=40", "prompt_tokens=6", "out=written.jsonl", "temperature=0.7")
    assert code == 0, said
    assert "Train on it: data=plain_text data.source.path=written.jsonl" in said.replace("\n", " ")
    small = ["student.net.config.hidden_size=16", "student.net.config.num_attention_heads=2"]
    small += ["student.net.config.num_key_value_heads=1", "trainer.max_epochs=1", "logger=none", "hydra.run.dir=run"]
    run = ["data=plain_text", "data.source.path=written.jsonl", f"data.source.test={folder / 'texts.jsonl'}"]
    run += [f"data.tokenizer={tmp_path / 'teacher'}", "data.max_length=32", "task=causal_lm", "data.batch_size=2"]
    code, said = cli("train", *run, "model/student=causal_lm", "model/teacher=none", "optim=adamw", *small)
    assert code == 0, said
    assert "test bits per byte" in said
    code, said = cli("generate", "model/teacher=ema", *own, "data=plain_text", "out=other.jsonl")
    assert code == 2
    assert "choose a frozen teacher" in said
    code, said = cli("generate", *given, "samples=0", "out=other.jsonl")
    assert (code, "samples=0: it must be a whole number of at least 1" in said.replace("\n", " ")) == (2, True)
