"""Prompts with completions: sums, what their tokens and targets are, and what is refused."""

from pathlib import Path

import pytest

from distillery.core.errors import UserError
from distillery.data.documents import document_columns
from distillery.data.sources.arithmetic import arithmetic
from distillery.data.tokenizers import load_tokenizer
from distillery.data.tokens import IGNORED
from fixtures.documents import batches, document_data, write_bpe
from fixtures.texts import write_tokenizer


def test_every_answer_is_right_and_no_sum_is_in_two_splits() -> None:
    raw = arithmetic(train=300, val=50, test=50, terms=3, digits=1)
    texts = raw.train.inputs
    for prompt, answer in zip(texts.first, texts.completions, strict=True):
        a, b, c = map(int, prompt.removesuffix("=").split("+"))
        assert answer == f"{a + b},{a + b + c}"
    assert len(set(texts.first)) == 400
    assert raw.val is not None
    splits = [set(split.indices.tolist()) for split in (raw.train, raw.val, raw.test)]
    assert [len(split) for split in splits] == [300, 50, 50]
    assert len(set.union(*splits)) == 400
    assert arithmetic(train=100, val=50, test=50, terms=3, digits=1).train.inputs.first == texts.first[:200]
    assert arithmetic().train.inputs.completions[0] == arithmetic(train=5).train.inputs.completions[0]
    for settings in ({"terms": 3, "digits": 1}, {"terms": 7, "digits": 3}):
        with pytest.raises(UserError, match="Ask for fewer"):
            arithmetic(**settings)  # type: ignore[arg-type]


def test_only_completions_bear_loss(tmp_path: Path) -> None:
    bpe = write_bpe(tmp_path / "bpe")
    tokenizer = load_tokenizer(bpe, "data.tokenizer")
    raw = arithmetic(train=6, val=1, test=2, terms=2, digits=1)
    data = document_data(bpe, raw, pack=False, too_long="refuse", val_size=None)
    for batch in batches(data, "train"):
        for ids, target, sizes, mask in zip(
            *(batch[key].tolist() for key in ("input_ids", "target", "bytes", "attention_mask")), strict=True
        ):
            prompt, answer = tokenizer.decode(ids).split("=")
            a, b = map(int, prompt.split("+"))
            assert answer.partition("<|end|>")[0] == str(a + b)  # padding is the end of a text, too
            bearing = [i for i, label in enumerate(target) if label != IGNORED]
            assert tokenizer.decode([ids[i] for i in bearing]) == f"{a + b}<|end|>"
            assert bearing[-1] == sum(mask) - 1  # its end is learnt
            assert sum(sizes) == len(f"{prompt}={a + b}")
    assert any("=" in text and text[-1].isdigit() for text in data.training_texts())
    with pytest.raises(UserError, match=r"set data\.pack"):
        document_data(bpe, raw, pack=None, too_long="truncate", val_size=None).setup()


def test_special_tokens_are_those_of_one_text(tmp_path: Path) -> None:
    """Of a tokenizer that adds some at both ends: [CLS] and [SEP], which is its end of text."""
    tokenizer = load_tokenizer(write_tokenizer(tmp_path), "data.tokenizer")
    tokenizer.eos_token = "[SEP]"
    words = tokenizer.convert_ids_to_tokens(tokenizer("a film", add_special_tokens=False)["input_ids"])
    found = document_columns(tokenizer, ["a film"], ["a film"])
    assert tokenizer.convert_ids_to_tokens(found["input_ids"][0]) == ["[CLS]", *words, *words, "[SEP]"]
    assert found["target"][0][: 1 + len(words)] == [IGNORED] * (1 + len(words))
    assert found["target"][0][1 + len(words) :] == found["input_ids"][0][1 + len(words) :]
    assert found["bytes"][0][0] == found["bytes"][0][-1] == 0
