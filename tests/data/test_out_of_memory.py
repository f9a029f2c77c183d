"""Sets larger than memory: texts and tokens in files are those in memory, and nothing of them is left behind."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from distillery.data import blocks, stored_texts
from distillery.data.sources import plain_text
from distillery.data.stored_texts import StoredTexts, stored
from distillery.data.token_cache import stored_tokens
from fixtures.documents import HARD, batches, document_data, documents, write_bpe

TEXTS = [*documents(30), "", *HARD]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTILLERY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_long_texts_lie_in_a_file_without_a_name(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stored(iter(TEXTS)) == TEXTS
    for limit in (0, 300):
        monkeypatch.setattr(stored_texts, "IN_MEMORY", limit)
        monkeypatch.setattr(stored_texts, "BATCH", 100)
        found = stored(iter(TEXTS))
        assert isinstance(found, StoredTexts)
        assert list(found) == TEXTS
        assert found[3:7] == TEXTS[3:7]
        assert found[-1] == TEXTS[-1]
        assert list(cache.iterdir()) == []


def test_columns_are_written_part_by_part(cache: Path, tmp_path: Path) -> None:
    parts: Any = [
        {"few": np.arange(size, dtype=np.uint8), "ids": np.arange(2 * size, dtype=np.int32) - 7} for size in (3, 0, 5)
    ]
    expected = {name: np.concatenate([part[name] for part in parts]) for name in ("few", "ids")}
    made = 0

    def make() -> Iterator[Any]:
        nonlocal made
        made += 1
        yield from parts

    for key in ("a", "a", None):
        found = stored_tokens(key, make)
        assert {name: values.tolist() for name, values in found.items()} == {
            name: values.tolist() for name, values in expected.items()
        }
    assert made == 2  # once for the file, and without a key
    (file,) = (cache / "tokens").iterdir()
    with safe_open(file, "np") as read:  # it is what it is called
        for name, values in expected.items():
            np.testing.assert_array_equal(read.get_tensor(name), values)


def test_documents_from_files_are_those_from_memory(cache: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Batches, remarks and fingerprint; with counts over several groups of pieces."""
    path = tmp_path / "all.txt"
    path.write_text("###".join(TEXTS), encoding="utf-8")
    bpe, found = write_bpe(tmp_path / "bpe"), []
    for small in (False, True):
        if small:
            monkeypatch.setattr(stored_texts, "IN_MEMORY", 0)
            monkeypatch.setattr(plain_text, "AT_ONCE", 7)
            monkeypatch.setattr(blocks, "AT_ONCE", 40)
            monkeypatch.setattr("distillery.data.documents.CHARACTERS", 100)
            monkeypatch.setenv("DISTILLERY_CACHE", str(tmp_path / "other"))
        raw = plain_text.plain_text(path, separator="###")
        assert isinstance(raw.train.inputs.first, StoredTexts) == small
        data = document_data(bpe, raw)
        found.append((data.remarks, data.fingerprint, list(batches(data, "train"))))
    (remarks, fingerprint, served), other = found
    assert "train: 1 rows with an empty text left out" in remarks
    assert (remarks, fingerprint) == other[:2]
    for first, second in zip(served, other[2], strict=True):
        assert all(torch.equal(first[key], second[key]) for key in first)
