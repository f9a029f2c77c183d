"""Documents of plain text from files and folders; what is split is whole documents."""

from pathlib import Path
from typing import Any

import pytest

from distillery.core.errors import UserError
from distillery.data.sources.plain_text import plain_text
from fixtures.texts import write_csv, write_jsonl

TEXTS = [f"Document {number}\n\nof two paragraphs. " for number in range(10)]


def of(part: Any) -> list[str]:
    return [part.inputs.first[position] for position in part.indices.tolist()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    deeper = tmp_path / "books" / "more"
    deeper.mkdir(parents=True)
    for number, text in enumerate(TEXTS):
        (deeper if number % 2 else deeper.parent).joinpath(f"{number}.txt").write_text(text, encoding="utf-8")
    (deeper / "notes.md").write_text("no document")
    return deeper.parent


def test_the_same_documents_from_every_kind_of_file(folder: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.txt"
    one.write_text("<|end|>".join(TEXTS), encoding="utf-8")
    write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in TEXTS])
    write_csv(tmp_path / "rows.csv", [(text,) for text in TEXTS], ["text"])
    for path, more in (
        (folder, {}),
        (one, {"separator": "<|end|>"}),
        (tmp_path / "rows.jsonl", {}),
        (tmp_path / "rows.csv", {}),
    ):
        raw = plain_text(path, test_fraction=0.2, **more)
        assert sorted([*of(raw.train), *of(raw.test)]) == sorted(TEXTS), path
        assert len(raw.test.indices) == 2
        assert raw.classes == ()
        assert not {*of(raw.train)} & {*of(raw.test)}


def test_own_splits_and_what_is_left_out(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text(f"{TEXTS[3]}###   ###new", encoding="utf-8")
    (folder / "twice.txt").write_text(TEXTS[0], encoding="utf-8")
    raw = plain_text(folder, separator="###", test=tmp_path / "test.txt")
    assert of(raw.test) == [TEXTS[3], "new"]
    assert sorted(of(raw.train)) == sorted({*TEXTS} - {TEXTS[3]})
    said = "; ".join(raw.remarks)
    assert "test: 1 rows with an empty text left out" in said
    assert "train: 1 repeated texts" in said
    assert "train: 1 texts that are also in test left out" in said


def test_refusals(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is one document, and whole documents are held out.*data\.source\.separator"):
        plain_text(folder / "0.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no file \*\.txt\. Name a JSON Lines or CSV file itself"):
        plain_text(tmp_path / "empty")
    with pytest.raises(UserError, match=r"nowhere\.txt' cannot be read"):
        plain_text(tmp_path / "nowhere.txt")
    with pytest.raises(UserError, match=r"data\.source\.text=body: .* has no such column"):
        plain_text(write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in TEXTS]), text="body")
    (folder / "9.txt").write_bytes("Gr\xfc\xdfe".encode("latin-1"))
    with pytest.raises(UserError, match=r"9\.txt' cannot be read: .*line 1 is not UTF-8.*encoding=cp1252"):
        plain_text(folder)
