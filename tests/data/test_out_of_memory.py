"""Sets larger than memory: texts and tokens in files are those in memory, and nothing of them is left behind."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, load_dataset
from safetensors import safe_open

from distillery.data import blocks, stored_texts
from distillery.data.sources import plain_text
from distillery.data.stored_texts import StoredTexts, stored
from distillery.data.token_cache import stored_tokens
from fixtures.documents import HARD, batches, document_data, documents, write_bpe
from fixtures.texts import write_csv, write_jsonl

TEXTS = [*documents(30), "", *HARD]
# Anonymous memory at most above what there was before, MiB, by source: pages of mapped files can be dropped.
MEASURE = """
import json, sys, threading, time
from distillery.data import stored_texts
from distillery.data.sources.hf_dataset import hf_dataset
from distillery.data.sources.messages import messages
from distillery.data.sources.plain_text import plain_text

stored_texts.IN_MEMORY = 100_000
sources = {
    "txt": lambda name: plain_text(f"{name}.txt", separator="###"),
    "jsonl": lambda name: plain_text(f"{name}.jsonl"),
    "csv": lambda name: plain_text(f"{name}.csv"),
    "messages": lambda name: messages(f"{name}.jsonl"),
    "hf_dataset": lambda name: hf_dataset(name, text="text", label=None, train="train[1:]", val=None, test="train[:1]"),
    "hf_dataset, conversations": lambda name: hf_dataset(
        name, conversations=True, train="train[1:]", val=None, test="train[:1]"
    ),
}


def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024


def watch():
    while not done:
        peaks.append(anonymous())
        time.sleep(0.001)


found = {}
for name, source in sources.items():
    source("small")
    before, peaks, done = anonymous(), [], False
    watching = threading.Thread(target=watch)
    watching.start()
    raw = source("large")
    done = True
    watching.join()
    found[name] = [max(peaks) - before, sum(map(len, raw.train.inputs.first)) / 2**20]
    del raw
print(json.dumps(found))
"""


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


def test_texts_that_are_read_are_not_all_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each source that promises it, in a fresh process."""
    monkeypatch.chdir(tmp_path)
    for name, number in (("small", 100), ("large", 2000)):
        texts = [f"{name} {at} {'word ' * 2000}" for at in range(number)]
        rows = [{"text": text, "prompt": "Go on.", "completion": text} for text in texts]
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.txt").write_text("###".join(texts))
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
        write_csv(tmp_path / f"{name}.csv", [(text,) for text in texts], ["text"])
        Dataset.from_list(rows).to_parquet(tmp_path / name / "train.parquet", batch_size=20)
        load_dataset(name, cache_dir=str(tmp_path / "cache"))  # `datasets` copies it into its own format once
    environment = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "DISTILLERY_CACHE": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    for source, (grown, size) in json.loads(ran.stdout.splitlines()[-1]).items():
        assert size > 19, source
        assert grown < 12, f"{source}: {grown:.0f} MiB more, for {size:.0f} MiB of text"
