"""Documents in blocks: bytes, pieces, packing and targets against counting by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from distillery.core.errors import UserError
from distillery.data.blocks import best_fit, cut
from distillery.data.documents import document_columns, token_bytes
from distillery.data.raw_data import Split, Texts
from distillery.data.tokenizers import load_tokenizer
from fixtures.documents import (
    END,
    HARD,
    batches,
    document_data,
    documents,
    raw_documents,
    with_byte_fallback,
    write_bpe,
)
from fixtures.texts import raw_texts, text_data, write_tokenizer

TEXTS = [*documents(12), *HARD]


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_bpe(tmp_path_factory.mktemp("bpe"))


def trimmed(bpe: str) -> Any:
    """GPT-2's, whose offsets leave out the blank before a word."""
    tokenizer = Tokenizer.from_file(f"{bpe}/tokenizer.json")
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def test_the_bytes_of_a_documents_tokens_add_up_to_its_own(bpe: str, tmp_path: Path) -> None:
    """With characters that are split over tokens, blanks that are in no token, and tokens of no text."""
    lower = load_tokenizer(write_tokenizer(tmp_path), "data.tokenizer")
    known = {
        "byte-level": load_tokenizer(bpe, "data.tokenizer"),
        "trimmed": trimmed(bpe),
        "fallback": with_byte_fallback(False),
        "start": with_byte_fallback(True),
        "word pieces": lower,
    }
    for name, tokenizer in known.items():
        found = document_columns(tokenizer, TEXTS)
        for text, ids, sizes in zip(TEXTS, found["input_ids"], found["bytes"], strict=True):
            assert sum(sizes) == len(text.encode()), (name, text)
            tokens = tokenizer.convert_ids_to_tokens(ids)
            special = [token in tokenizer.all_special_tokens and token not in ("<unk>", "[UNK]") for token in tokens]
            front = special.index(False)
            special[front] = tokens[front] == "▁"  # a blank that is put in front, as a token of its own
            if special.count(False) <= len(text.encode()):  # one byte for each at least
                assert [size == 0 for size in sizes] == special, (name, text)
            assert min(sizes) >= 0
    split = known["byte-level"](HARD[2])
    assert len(split["input_ids"]) > len(HARD[2])  # the case is what it says
    sizes = document_columns(known["byte-level"], [HARD[2]])["bytes"][0][:-1]
    pieces = known["byte-level"].convert_ids_to_tokens(split["input_ids"])
    assert sizes == [len(piece) for piece in pieces]  # a byte-level token has a letter for each of its bytes


def test_bytes_of_tokens_by_hand() -> None:
    for text, ends, expected in (
        ("ab c", [1, 2, 4], [1, 1, 2]),  # the blank belongs to the token that follows
        ("é😀x", [1, 2, 2, 3], [2, 3, 1, 1]),  # four bytes for two tokens
        ("日", [1, 1, 1], [1, 1, 1]),
        ("日", [0, 1], [1, 2]),  # one that stands for nothing takes a byte of the next
        ("ab  ", [1, 2], [1, 3]),  # blanks at the end
        ("a", [1, 1], [1, 0]),  # more tokens than bytes
    ):
        assert token_bytes(text, np.array(ends)).tolist() == expected, text
    assert token_bytes("", np.array([], dtype=np.int64)).tolist() == []
    for text, ends, own, expected in (
        ("é😀x", [1, 2, 2, 3], [2, 1, 3, 1], [2, 1, 3, 1]),  # what the tokens of a character stand for is known
        ("日", [1, 1], [2, 2], [1, 2]),  # one byte more, a blank that the tokenizer puts in front
        ("ab", [1, 2], [2, 1], [1, 1]),
        ("日b", [1, 1, 2], [1, 3, 1], [0, 3, 1]),
        ("ab", [1, 2], [2, 2], [1, 1]),  # of another text: not used
        ("é😀", [1, 2], [4, 2], [2, 4]),
    ):
        assert token_bytes(text, np.array(ends), np.array(own)).tolist() == expected, text


def test_a_document_ends_with_the_end_of_text_once(bpe: str) -> None:
    tokenizer = load_tokenizer(bpe, "data.tokenizer")
    end = tokenizer.eos_token_id
    plain, ended = document_columns(tokenizer, ["the people", f"the people{END}"])["input_ids"]
    assert plain == ended
    assert plain.count(end) == 1
    assert plain[-1] == end


def test_every_token_but_the_first_bears_loss_once_whatever_the_length() -> None:
    lengths = np.array([1, 2, 5, 9, 8, 24, 25])
    starts = lengths.cumsum() - lengths
    for most in (2, 3, 5, 8, 30):
        pieces = cut(starts, lengths, most)
        assert pieces.lengths.min() >= 2
        assert pieces.lengths.max() <= most
        bearing = [at for start, length in zip(*pieces, strict=True) for at in range(start + 1, start + length)]
        wanted = [at for start, length in zip(starts, lengths, strict=True) for at in range(start + 1, start + length)]
        assert bearing == wanted
    first = cut(starts, lengths, 5, rest=False)
    assert first.lengths.tolist() == [2, 5, 5, 5, 5, 5]
    assert first.starts.tolist() == starts[1:].tolist()


def test_best_fit_cuts_no_piece_and_fills_blocks() -> None:
    lengths = np.random.default_rng(0).integers(2, 33, 500)
    block = best_fit(lengths, 64)
    used = np.bincount(block, weights=lengths)
    assert used.max() <= 64
    assert used.min() > 0
    assert len(used) <= lengths.sum() / 64 + 1
    firsts = [np.flatnonzero(block == number)[0] for number in range(len(used))]
    assert firsts == sorted(firsts)
    assert best_fit(np.array([3, 6, 2, 4, 1]), 8).tolist() == [0, 1, 1, 0, 0]


def test_blocks_hold_every_document_with_its_positions_and_targets(bpe: str) -> None:
    """Packed or not, each token but the first of a document is a target once, and only padding is left over."""
    tokenizer = load_tokenizer(bpe, "data.tokenizer")
    whole = document_columns(tokenizer, TEXTS)["input_ids"]
    targets = sorted(token for ids in whole for token in ids[1:])
    for pack in (True, False):
        data = document_data(bpe, TEXTS, pack=pack)
        found, blocks, pieces = [], 0, 0
        for batch in batches(data):
            assert {each.shape for key, each in batch.items() if key != "index"} == {batch["input_ids"].shape}
            counts = batch["attention_mask"].bool()
            begins = batch["position_ids"] == 0
            assert torch.equal(batch["target"] == -100, begins)
            assert begins[~counts].all()
            assert torch.equal(batch["target"][~begins], batch["input_ids"][~begins])
            found += batch["target"][~begins].tolist()
            pieces += int((begins & counts).sum())
            blocks += len(counts)
            for row, ids in zip(batch["position_ids"], batch["input_ids"], strict=True):
                for at in range(1, len(row)):
                    if row[at]:
                        assert row[at] == row[at - 1] + 1
                assert ids.shape[0] <= 24
        assert sorted(found) == targets
        assert (blocks < pieces) == pack
        assert pieces == sum(-(-(len(ids) - 1) // 23) for ids in whole)


def test_the_number_of_a_block_is_that_of_the_same_tokens(bpe: str) -> None:
    """And the fingerprint tells apart documents, lengths and packing."""
    fingerprints = []
    for given in ({}, {"seed": 5}, {"max_length": 16}, {"pack": False}, {"train_size": 9}):
        data = document_data(bpe, TEXTS, **given)
        fingerprints.append(data.fingerprint)
        if len(fingerprints) == 2:
            first, second = (document_data(bpe, TEXTS, **each).splits["train"].inputs for each in ({}, given))
            every = torch.arange(len(first.lengths))
            assert torch.equal(first.batch(every, 24)["input_ids"], second.batch(every, 24)["input_ids"])
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == 4


def test_whole_documents_are_held_out(bpe: str) -> None:
    data = document_data(bpe, raw_documents(TEXTS, documents(5, seed=9)), val_size=4)
    said = [remark for remark in data.remarks if ": " in remark]
    assert [remark.partition(",")[0] for remark in said[:1]] == ["train: 12 documents"]
    assert said[1].startswith("val: 4 documents, ")
    tokenizer, held = load_tokenizer(bpe, "data.tokenizer"), {}
    data = document_data(bpe, raw_documents(TEXTS, documents(5, seed=9)), val_size=4, max_length=500, pack=False)
    for stage in ("train", "val", "test"):
        rows = (row for batch in batches(data, stage) for row in batch["input_ids"])
        held[stage] = {tokenizer.decode(row, skip_special_tokens=True) for row in rows}
    assert held["train"] | held["val"] == set(TEXTS)
    assert (len(held["train"]), len(held["val"])) == (12, 4)
    assert held["test"] == set(documents(5, seed=9))


def test_documents_have_no_classes_whatever_labels_their_source_has(bpe: str) -> None:
    labels = torch.arange(len(TEXTS)) % 2
    raw = replace(raw_documents(TEXTS), classes=("bad", "good"), train=Split.whole(Texts(TEXTS), labels))
    data = document_data(bpe, raw, val_size=4)
    assert data.classes == ()
    assert not [remark for remark in data.remarks if "good" in remark]


def test_what_becomes_of_long_documents(bpe: str) -> None:
    lengths = [len(ids) for ids in document_columns(load_tokenizer(bpe, ""), TEXTS)["input_ids"]]
    over = sum(length > 24 for length in lengths)
    (said,) = (each for each in document_data(bpe, TEXTS).remarks if each.startswith("train"))
    assert f"16 documents, {sum(lengths):,} tokens" in said
    assert f"{over} documents are longer and cut into pieces" in said
    share = (sum(lengths) - 16) / sum(lengths)
    assert f"{share:.2%} of the tokens bear loss" in said
    (cut_off,) = (each for each in document_data(bpe, TEXTS, too_long="truncate").remarks if each.startswith("train"))
    left_out = sum(max(0, length - 24) for length in lengths)
    assert f"{over} documents are longer and truncated, by {left_out:,} tokens in all" in cut_off
    with pytest.raises(UserError, match=rf"{2 * over} of 32 documents have more than 24 tokens"):
        _ = document_data(bpe, TEXTS, too_long="refuse").splits


def test_refusals(bpe: str, tmp_path: Path) -> None:
    pairs = raw_texts(Texts(["a"] * 4, ["b"] * 4))
    for given, message in (
        ({"mask": 0.15}, "data.pack=True and data.mask=0.15 exclude each other"),
        ({"max_length": 1}, "it is the number of tokens in a block, 2 or more"),
    ):
        with pytest.raises(UserError, match=message):
            _ = document_data(bpe, TEXTS, **given).splits
    with pytest.raises(UserError, match=r"data\.pack is for plain documents, and these texts are pairs"):
        _ = document_data(bpe, pairs).splits
    with pytest.raises(UserError, match=r"too_long=split is for causal language models"):
        _ = text_data(bpe, Texts(TEXTS), too_long="split").splits
    with pytest.raises(UserError, match=r"does not tell which part of a text each token covers"):
        document_columns(type("Slow", (), {"is_fast": False})(), ["a"])
