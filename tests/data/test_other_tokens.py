"""The tokens of a teacher's tokenizer for the same pieces of documents, against the documents themselves."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.data.blocks import causal_batch
from distillery.data.other_tokens import PLACES, next_tokens
from distillery.data.sampler import BatchKey
from distillery.data.text import TextData
from distillery.data.tokenizers import END, load_tokenizer, token_texts
from fixtures.documents import HARD, batches, document_data, documents, raw_documents, with_byte_fallback, write_bpe

TEXTS = [*documents(10), *HARD, "of", "the"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tokenizers")
    found = {"small": write_bpe(folder / "small", 280), "large": write_bpe(folder / "large", 360)}
    for name, start in (("sentencepiece", False), ("with_start", True)):
        with_byte_fallback(start).save_pretrained(folder / name)
        found[name] = str(folder / name)
    return found


def own(batch: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): value for key, value in batch.items() if key.startswith(f"{name}/")}


def whole_split(data: TextData) -> list[dict[str, Tensor]]:
    """Each block of the test split alone, in their order."""
    blocks = data.splits["test"].inputs
    return [causal_batch(blocks, torch.tensor([i]), BatchKey(0, [], int(n))) for i, n in enumerate(blocks.lengths)]


def test_every_token_bears_loss_once_and_stands_where_it_says(tokenizers: dict[str, str]) -> None:
    """In pieces of the student's, whatever the tokenizers are; the first token of a document bears none."""
    for ours, theirs in (("small", "large"), ("large", "small"), ("large", "sentencepiece"), ("small", "with_start")):
        data = document_data(tokenizers[ours], TEXTS, pack=False, max_length=9)
        name, words = tokenizers[theirs], token_texts(load_tokenizer(tokenizers[theirs], "x"))
        data.setup()
        data.add_tokenizer(name)
        learnt: list[list[int]] = []
        for piece, given in zip(whole_split(data), whole_split(data.others[name]), strict=True):
            if piece["ends"][0, 0] == piece["bytes"][0, 0] * PLACES:
                learnt.append([])  # a document begins
            rows = next_tokens(given)
            learnt[-1] += rows.token.tolist()
            text = TEXTS[len(learnt) - 1].encode()
            for token, start, end in zip(*(each.tolist() for each in rows), strict=True):
                place = slice(start % 2**32 // PLACES, end % 2**32 // PLACES)
                expected = b"" if words[token] == END else words[token]
                in_front = expected[:1] if place.start == 0 and text[place] != expected else b""  # a blank
                assert in_front + text[place] == expected, (ours, theirs)
        whole = [load_tokenizer(name, "x")(text)["input_ids"] for text in TEXTS]
        end = words.index(END)
        assert learnt == [[*ids, end][1:] for ids in whole], (ours, theirs)


def test_packed_or_not_the_same_tokens_are_served(tokenizers: dict[str, str]) -> None:
    def targets(**settings: object) -> tuple[list[int], TextData]:
        data = document_data(tokenizers["small"], TEXTS, max_length=24, **settings)
        data.setup()
        data.add_tokenizer(tokenizers["large"])
        given = [own(batch, tokenizers["large"]) for batch in batches(data)]
        assert all(batch["position_ids"].max() < data.others[tokenizers["large"]].limit for batch in given)
        return sorted(token for batch in given for token in next_tokens(batch).token.tolist()), data

    packed, data = targets(pack=True)
    assert packed == targets(pack=False)[0]
    cut, _ = targets(pack=True, too_long="truncate")
    assert 0.2 * len(packed) < len(cut) < 0.8 * len(packed)
    (said,) = [remark for remark in data.remarks if "train: " in remark and "in one token of each" in remark]
    assert "in groups that end together" in said
    size = data.others[tokenizers["large"]].vocab_size
    assert f"tokenizer {tokenizers['large']}: 280 of its {size} tokens are also in the data's tokenizer" in data.remarks


def test_the_same_tokenizer_gives_the_same_batch(tokenizers: dict[str, str], tmp_path: Path) -> None:
    load_tokenizer(tokenizers["with_start"], "x").save_pretrained(tmp_path / "copy")
    data = document_data(tokenizers["with_start"], TEXTS, max_length=11)
    data.setup()
    data.add_tokenizer(str(tmp_path / "copy"))
    for batch in batches(data):
        columns = own(batch, str(tmp_path / "copy"))
        assert columns.keys() == batch.keys() - {"index"} - {key for key in batch if "/" in key}
        for key, value in columns.items():
            torch.testing.assert_close(value, batch[key], rtol=0, atol=0)


def test_what_tokens_stand_for(tokenizers: dict[str, str]) -> None:
    tokenizer = load_tokenizer(tokenizers["sentencepiece"], "x")
    texts = token_texts(tokenizer)
    expected = {"<0xE6>": b"\xe6", "▁the": b" the", "日": "日".encode(), "<s>": "<s>", "</s>": END}
    assert {name: texts[tokenizer.convert_tokens_to_ids(name)] for name in expected} == expected
    tokenizer = load_tokenizer(tokenizers["small"], "x")
    texts = token_texts(tokenizer)
    assert texts[tokenizer.eos_token_id] == END
    assert {text for text in texts if isinstance(text, bytes) and len(text) == 1} == {bytes([i]) for i in range(256)}
    for text in HARD:
        ids = tokenizer(text)["input_ids"]
        assert b"".join(texts[id_] for id_ in ids).decode() == text  # type: ignore[misc]


def test_other_documents_are_refused(tokenizers: dict[str, str]) -> None:
    data = document_data(tokenizers["small"], TEXTS)
    data.setup()
    other = data.add_tokenizer(tokenizers["large"])
    other.raw = raw_documents([*TEXTS[:-1], "other"])
    with pytest.raises(
        UserError, match=r"not the same text for both tokenizers; different chat templates may be the reason"
    ):
        _ = other.splits
