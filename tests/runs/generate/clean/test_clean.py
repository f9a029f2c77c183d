"""`distill-clean`: what is kept, what is said of the rest, who can read it, and what happens to bad input."""

import errno
import json
import os
import random
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from distillery.commands import clean as command_module
from distillery.core.errors import UserError
from distillery.data.sources.messages import messages
from distillery.runs.generate.clean.clean import clean
from fixtures.cleaning import filters
from fixtures.command_line import Command
from fixtures.texts import write_jsonl

TEST = "Anna has twelve red apples and gives five of them to her brother Ben before lunch"


def chat(prompt: str, answer: str, **given: Any) -> dict[str, Any]:
    turns = [{"role": "system", "content": "You are brief. " * 30}, {"role": "user", "content": prompt}]
    return {"messages": [*turns, {"role": "assistant", "content": answer}], **given}


def provenance(index: int, sample: int = 0) -> dict[str, Any]:
    return {
        "index": index,
        "sample": sample,
        "finish_reason": "stop",
        "model": "gpt-4o-mini-2024-07-18",
        "system_fingerprint": None,
        "template_sha256": "ab" * 32,
        "parameters": {"temperature": 1.0, "max_tokens": 64},
        "created": 1_790_000_000 + index,
        "usage": {"prompt_tokens": 10, "completion_tokens": 5},
        "licence": "OpenAI's terms",
        "mine": {"kept": ["é\u2028", None], "number": index / 2},
    }


ASKED = "Which three colours do painters call primary, and why do they call them that?"
FROG = " ".join(f"frog{number}" for number in range(30))
# Each row with the reason for which it is dropped; many have a later reason, too.
ROWS: list[tuple[dict[str, Any], str]] = [
    (chat(ASKED, "Red, yellow and blue.", **provenance(0)), ""),
    (chat(ASKED, "Blue, red and yellow: no others mix to them.", **provenance(0, 1)), ""),  # another sample
    (chat(ASKED, "Red, yellow and blue.", **provenance(0, 2)), "exact_duplicate"),
    (chat(ASKED, "red, yellow AND blue!", **provenance(0, 3)), "near_duplicate_text"),
    (chat(ASKED.replace("three", "3"), "Red.", **provenance(1)), "near_duplicate_prompt"),
    (chat(ASKED, "Yellow.", **provenance(2)), "near_duplicate_prompt"),  # asked twice in the list of prompts
    (chat("Cut off", "I'm sorry, but I can't help", **provenance(3) | {"finish_reason": "length"}), "finish_reason"),
    (chat("Empty", " \n", **provenance(4)), "empty"),
    (chat("Forbidden", "I'm sorry, but I can't help with that.", **provenance(5)), "refusal"),
    (chat("Sing", "la " * 60, **provenance(6)), "repetition"),
    (chat("Short", "ab", **provenance(7)), "length"),
    (chat("Deutsch", "Der Zug nach Hamburg fährt heute leider erst um acht Uhr ab.", **provenance(8)), "language"),
    (chat("Leaked", f"Once: {TEST.upper()}!", **provenance(9)), "contamination"),
    (chat("What is 6 x 7?", "It is forty-two.", **provenance(10)), "contamination"),
    (
        chat("Again leaked", f"Once: {TEST.upper()}!", **provenance(11)),
        "contamination",
    ),  # no duplicate of a dropped row
    ({"prompt": "Is ice solid?", "completion": "<think>As an AI, I may say that.</think>It is."}, ""),
    ({"conversations": [{"from": "human", "value": "Is tea hot?"}, {"from": "gpt", "value": "It may be."}]}, ""),
    ({"instruction": "Is sand wet?", "output": "Seldom."}, ""),
    ({"instruction": "Is sand wet?", "output": "As an AI, I cannot touch it."}, "refusal"),
    ({"text": FROG, "finish_reason": None}, ""),
    ({"text": FROG.upper() + " toad"}, "near_duplicate_text"),
    ({"prompt": FROG.replace("frog", "newt"), "completion": "Red."}, ""),
    ({"prompt": FROG.replace("frog", "newt"), "completion": "Blue."}, ""),  # almost the same text, another answer
]
SETTINGS = ("language.allowed=[en]", "length.min_characters=3")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "answers.jsonl", [row for row, _ in ROWS])
    write_jsonl(tmp_path / "test.jsonl", [{"question": TEST}, {"prompt": "What is 6 x 7?", "completion": "42"}])
    return tmp_path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_each_row_is_kept_untouched_or_dropped_for_its_first_reason(folder: Path) -> None:
    summary, _ = clean(
        folder / "answers.jsonl", folder / "out", filters(*SETTINGS), [str(folder / "test.jsonl")], encoding=None
    )
    assert read(folder / "out" / "clean.jsonl") == [row for row, reason in ROWS if not reason]
    dropped = read(folder / "out" / "dropped.jsonl")
    expected = [(line, reason, row) for line, (row, reason) in enumerate(ROWS, 1) if reason]
    assert [(each["line"], each["reason"], each["row"]) for each in dropped] == expected
    assert summary.kept == 8
    why = {each["line"]: each["evidence"] for each in dropped}
    assert why[3] == {"duplicate_of_line": 1}
    assert (why[4]["duplicate_of_line"], why[4]["jaccard"]) == (1, 1.0)
    assert why[5]["text"] == why[6]["text"] == ASKED
    assert why[5]["jaccard"] == round(11 / 15, 4)  # one of 14 words differs, and with it 2 of 13 pairs
    assert why[13]["shared_words"] == TEST.lower()
    assert (why[13]["test_row"], why[14]["test_row"]) == ("test.jsonl, line 1", "test.jsonl, line 2")


def test_the_folder_is_a_data_set_of_the_hub(folder: Path) -> None:
    """`load_dataset` reads the rows through the card; so does `data=messages`, and both files agree."""
    chats = [row for row, _ in ROWS if "messages" in row]
    clean(write_jsonl(folder / "chats.jsonl", chats), folder / "out", filters(*SETTINGS), [str(folder / "test.jsonl")])
    kept = read(folder / "out" / "clean.jsonl")
    loaded = datasets.load_dataset(str(folder / "out"), cache_dir=str(folder / "cache"))
    assert list(loaded) == ["train"]
    assert loaded["train"].to_list() == kept
    lines = datasets.load_dataset(
        "json", data_files=str(folder / "out" / "clean.jsonl"), split="train", cache_dir=str(folder / "cache")
    )
    assert [row["messages"] for row in lines] == [row["messages"] for row in kept]
    raw = messages(folder / "out" / "clean.jsonl", test_fraction=0.5)
    texts = [json.loads(raw.train.inputs.first[at])["messages"] for at in range(len(raw.train.inputs))]  # type: ignore[union-attr]
    assert texts == [row["messages"] for row in kept]

    card = (folder / "out" / "README.md").read_text(encoding="utf-8")
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["size_categories"] == ["n<1K"]
    assert metadata["language"] == ["en"]
    for said in (
        "2 rows of text",
        "`gpt-4o-mini-2024-07-18` (2)",
        "`OpenAI's terms` (2)",
        "2026-09-21",
        "completion_tokens: 10",
        "| contamination | words in a row are also in the test set | 3 | `ngram=13` |",
        TEST.lower(),
        "`duplicate_of_line: 1`",
    ):
        assert said in card, said


def test_columns_without_a_common_type_are_json_text_in_parquet(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows: list[dict[str, Any]] = [
        {"text": " ".join(f"w{rng.randrange(10**6)}" for _ in range(20))} for _ in range(1500)
    ]
    rows[3] |= {"note": 1, "size": 2**70, "late": [1], "empty": {}, "whole": 1}
    rows[1400] |= {"note": "x", "late": [2.5], "later": {"a": [{"b": None}]}, "whole": 2}
    _, remarks = clean(write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out", filters())
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["text"] == [row["text"] for row in rows]
    assert (loaded[3]["note"], loaded[1400]["note"], loaded[0]["note"]) == ("1", '"x"', None)
    assert (loaded[3]["size"], loaded[3]["empty"]) == (str(2**70), "{}")
    assert (loaded[3]["late"], loaded[1400]["late"], loaded[1400]["whole"]) == ([1.0], [2.5], 2)
    assert loaded[1400]["later"] == {"a": [{"b": None}]}
    assert any("empty, note, size" in remark for remark in remarks)
    assert read(tmp_path / "out" / "clean.jsonl") == rows


def test_the_command_says_what_it_did(folder: Path, command: Command) -> None:
    given = ("path=answers.jsonl", "out=out", "against=test.jsonl", *SETTINGS)
    answer = command(command_module, *given)
    assert answer.code == 0, answer.err
    assert "out: 8 of 23 rows kept. Train on them: data=plain_text data.source.path=out/clean.jsonl" in answer.out
    assert "contamination" in answer.out
    assert "line 9: pattern: cannot; found: I'm sorry, but I can't help" in answer.out

    before = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    assert set(before) == {"clean.jsonl", "clean.parquet", "dropped.jsonl", "README.md", "settings.json"}
    assert command(command_module, *given).code == 0
    assert {path.name: path.read_bytes() for path in (folder / "out").iterdir()} == before
    other = command(command_module, *given, "contamination.ngram=8")
    assert other.code == 2
    assert "out=out was made with other settings: contamination.ngram=13, not 8" in other.err
    assert {path.name: path.read_bytes() for path in (folder / "out").iterdir()} == before
    assert command(command_module, *given, "contamination.ngram=8", "replace=true").code == 0
    assert (folder / "out" / "settings.json").read_bytes() != before["settings.json"]
    for wrong, said in {
        "length.min_wrds=2": "Did you mean 'length.min_words'?",
        "length.min_words=-1": "length.min_words=-1: it must be a whole number of at least 0 or null",
        "near_duplicate_texts.threshold=1.5": "near_duplicate_texts.threshold=1.5",
        "against=tset.jsonl": "Did you mean 'test.jsonl'",
        "against=nowhere/at_all": "against=nowhere/at_all",
        "finish_reasons=stop": "finish_reasons=stop: it must be",
    }.items():
        refused = command(command_module, *given, "out=other", wrong)
        assert refused.code == 2, wrong
        assert said in refused.err, refused.err


def test_most_rows_dropped_for_one_reason_are_remarked(tmp_path: Path) -> None:
    task = "Say whether the following review of a film is positive or negative, in one word without a full stop: "
    rows = [{"prompt": f"{task}word{number}", "completion": "positive"} for number in range(10)]
    summary, remarks = clean(write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out", filters())
    assert summary.dropped == {"near_duplicate_prompt": 9}
    (remark,) = remarks
    assert "9 of 10 rows" in remark
    assert "near_duplicate_prompts.threshold=null keeps them" in remark


def test_test_sets_are_read_from_tables_and_folders(tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": TEST}, {"text": "Another text altogether."}])
    (tmp_path / "set").mkdir()
    (tmp_path / "test.csv").write_text(f'id,text\n1,"{TEST}"\n')
    datasets.Dataset.from_list([{"q": TEST}]).to_parquet(str(tmp_path / "set" / "test.parquet"))
    for against in ("test.csv", "set"):
        summary, _ = clean(rows, tmp_path / f"out_{against}", filters(), [str(tmp_path / against)])
        assert summary.dropped == {"contamination": 1}
        assert summary.reader == "plain_text"


WHOLE = json.dumps(chat("Hello", "Good day to you."))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (f'{WHOLE}\n{{"messages": [{{"role"'.encode(), "line 2: not valid JSON .* may have been cut off there"),
        (f"{WHOLE}\n{{}}\n".encode(), "line 2: unknown format with the keys none"),
        (f'{WHOLE}\n{{"text": 3}}\n'.encode(), "line 2: unknown format with the keys text"),
        (b'{"messages": [{"role": "robot", "content": "a"}]}\n', "line 1: 'messages', message 0: unknown role 'robot'"),
        ('{"text": "na\u00efve"}\n'.encode("cp1252"), "line 1 is not UTF-8.* set encoding=cp1252"),
        (b"", "is empty"),
        (b'{"text": ""}\n{"text": " "}\n', "No row is left of 2: 2 because there is no answer to learn from"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_lost(folder: Path, content: bytes, said: str) -> None:
    clean(folder / "answers.jsonl", folder / "out", filters())
    before = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    (folder / "answers.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=f"(?s){said}"):
        clean(folder / "answers.jsonl", folder / "out", filters())
    assert {path.name: path.read_bytes() for path in (folder / "out").iterdir()} == before
    assert (folder / "answers.jsonl").read_bytes() == content


def test_other_encodings_are_read(tmp_path: Path) -> None:
    line = json.dumps({"text": "naïve"}, ensure_ascii=False) + "\n"
    (tmp_path / "a.jsonl").write_bytes(line.encode("cp1252"))
    (tmp_path / "b.jsonl").write_bytes(line.encode("utf-16"))
    clean(tmp_path / "a.jsonl", tmp_path / "a", filters(), encoding="cp1252")
    _, remarks = clean(tmp_path / "b.jsonl", tmp_path / "b", filters())
    assert read(tmp_path / "a" / "clean.jsonl") == read(tmp_path / "b" / "clean.jsonl") == [{"text": "naïve"}]
    assert "UTF-16" in remarks[0]


def test_a_full_disk_leaves_what_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean(folder / "answers.jsonl", folder / "out", filters())
    before = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}

    calls = 0

    def full(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:  # the other files are on the disk
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"out' cannot be written: No space left on device\. .* untouched"):
        clean(folder / "answers.jsonl", folder / "out", filters("contamination.ngram=8"), replace=True)
    assert {path.name: path.read_bytes() for path in (folder / "out").iterdir()} == before


def test_other_files_are_not_overwritten(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "README.md").write_text("mine")
    with pytest.raises(UserError, match=r"holds README\.md, which distill-clean did not write"):
        clean(folder / "answers.jsonl", folder / "out", filters())
    clean(folder / "answers.jsonl", folder / "done", filters())
    with pytest.raises(UserError, match="would be overwritten"):
        clean(folder / "done" / "clean.jsonl", folder / "done", filters(), replace=True)
    with pytest.raises(UserError, match="is a file"):
        clean(folder / "answers.jsonl", folder / "test.jsonl", filters())
