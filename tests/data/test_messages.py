"""Conversations in the formats that TRL and LLaMA-Factory write, and what is wrong with them."""

import json
from pathlib import Path
from typing import Any

import pytest

from distillery.core.errors import UserError
from distillery.data.conversations import spoken
from distillery.data.raw_data import RawData
from distillery.data.sources.hf_dataset import hf_dataset
from distillery.data.sources.messages import messages
from fixtures.conversations import turns
from fixtures.texts import write_jsonl

OTHER = [{"messages": turns("held", "out")}]
ASKED = {"messages": turns("Add\n1 2", "3")}


def read(raw: RawData, split: str = "train") -> list[Any]:
    part = getattr(raw, split)
    return [json.loads(part.inputs.first[position]) for position in part.indices.tolist()]


def given(folder: Path, rows: Any, name: str = "rows.jsonl") -> RawData:
    if name.endswith(".json"):
        (folder / name).write_text(json.dumps(rows, indent=2), encoding="utf-8")
    else:
        write_jsonl(folder / name, rows)
    return messages(folder / name, test=write_jsonl(folder / "test.jsonl", OTHER))


def test_every_format(tmp_path: Path) -> None:
    shared = [{"from": "human", "value": "Add\n1 2"}, {"from": "gpt", "value": "3"}]
    system = {"messages": turns("Add\n1 2", "3", system="Be brief.")}
    called = [*turns("2?")[:1], {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}]
    for row, expected in (
        (ASKED, ASKED),
        ({"messages": [{**each, "name": None} for each in ASKED["messages"]], "id": 7}, ASKED),
        ({"conversations": shared}, ASKED),
        ({"conversations": shared, "system": "Be brief."}, system),
        ({"conversations": ASKED["messages"], "system": ""}, ASKED),
        ({"instruction": "Add", "input": "1 2", "output": "3"}, ASKED),
        ({"instruction": "Add\n1 2", "input": "", "output": "3", "system": "Be brief."}, system),
        ({"instruction": "c", "output": "d", "history": [["a", "b"]]}, {"messages": turns("a", "b", "c", "d")}),
        ({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b"}),
        ({"prompt": turns("a"), "completion": turns("", "b")[1:]}, {"messages": turns("a", "b"), "prompt": 1}),
        (
            {"messages": called, "tools": '[{"type": "function"}]'},
            {"messages": called, "tools": [{"type": "function"}]},
        ),
    ):
        for name in ("rows.jsonl", "rows.json"):
            assert read(given(tmp_path, [row], name)) == [expected], row
    raw = given(tmp_path, [ASKED])
    assert read(raw, "test") == OTHER
    assert [spoken(json.dumps(each)) for each in (ASKED, {"prompt": "a", "completion": "b"})] == ["Add\n1 2\n3", "ab"]


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    rows = [
        ASKED,
        ASKED,
        *OTHER,
        {"messages": turns("a")},
        {"messages": turns("a", " ")},
        {"messages": turns("", "b", "c", "d")[1:]},
        {"prompt": turns("a", "b"), "completion": turns("c")},
        {"prompt": "a", "completion": ""},
    ]
    raw = given(tmp_path, rows)
    assert read(raw) == [ASKED]
    assert raw.remarks == (
        "train: 1 repeated conversations left out",
        "train: 1 conversations that are also in test left out",
        "train: 2 conversations without an assistant turn left out",
        "train: 1 conversations with an empty turn left out",
        "train: 1 conversations that begin with an assistant turn left out",
        "train: 1 with an empty completion left out",
    )
    many = messages(write_jsonl(tmp_path / "many.jsonl", [{"messages": turns(f"{i}", "b")} for i in range(20)]))
    assert (len(many.train.indices), len(many.test.indices)) == (18, 2)


def test_refusals(tmp_path: Path) -> None:
    for rows, message in (
        (
            [ASKED, {"text": "a"}],
            r"rows\.jsonl', line 2: unknown format with the keys text\. A row must have messages: .*Alpaca",
        ),
        ([{"messages": "a"}], r"line 1: 'messages' is not a list of messages: 'a'"),
        (
            [{"messages": [{"role": "assistent", "content": "a"}]}],
            r"message 0: unknown role 'assistent'.*Did you mean",
        ),
        ([{"conversations": [{"value": "a"}]}], r"'conversations', message 0: unknown role None"),
        ([{"messages": [{"role": "user", "content": [{"type": "image"}]}]}], r"message 0: the content is not text"),
        ([{"instruction": "a", "output": 3}], r"line 1: 'output' is not text: '3'"),
        (
            [{"messages": turns("a")}],
            r"'rows' has no conversations left for the train split\. train: 1 conv",
        ),
    ):
        with pytest.raises(UserError, match=message):
            given(tmp_path, rows)
    for content, message in (
        ('{"messages": [\n', r"torn\.jsonl', line 1: not valid JSON"),
        ("[{]", r"torn\.jsonl' is not valid JSON"),
        ("[3]", r"torn\.jsonl', line 1: it must be a JSON object, not '3'"),
        ("", r"torn\.jsonl' is empty"),
    ):
        (tmp_path / "torn.jsonl").write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            messages(tmp_path / "torn.jsonl")


def test_a_data_set_of_the_hub(tmp_path: Path) -> None:
    files = {
        "train": str(write_jsonl(tmp_path / "a.jsonl", [{**ASKED, "label": 1}])),
        "test": str(tmp_path / "b.jsonl"),
    }
    write_jsonl(tmp_path / "b.jsonl", OTHER)
    raw = hf_dataset("json", data_files=files, val=None, conversations=True)
    assert (read(raw), read(raw, "test")) == ([ASKED], OTHER)
    with pytest.raises(UserError, match="repeated conversations are always left out"):
        hf_dataset("json", data_files=files, conversations=True, drop_duplicates=False)
