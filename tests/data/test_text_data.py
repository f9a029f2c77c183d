"""Texts as batches: what the tokenizer itself makes of them, cut, counted, masked, and the same in a resumed run."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, DataCollatorForTokenClassification, GPT2Tokenizer

from distillery.core.errors import UserError
from distillery.data.raw_data import RawData, Split, Texts
from distillery.data.text import TextData
from distillery.data.tokens import tokenised
from fixtures.texts import POSITIONS, VOCABULARY, raw_texts, sentences, text_data, write_tokenizer

FIRST = [text for text, _ in sentences(50)]
SECOND = [text for text, _ in sentences(50, seed=1)]
WORDS = [text.split() for text in FIRST]
LABELS = [[(7 * number + place) % 5 for place, _ in enumerate(words)] for number, words in enumerate(WORDS)]
Batch = dict[str, Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tokenizer(tmp_path_factory.mktemp("texts") / "tokenizer")


@pytest.fixture(scope="module")
def tokenizer(folder: str) -> Any:
    """One that knows nothing of what ours has been used for."""
    return AutoTokenizer.from_pretrained(folder)


def loaders(data: TextData) -> dict[str, list[Batch]]:
    return {"train": list(data.train_dataloader()), "test": list(data.test_dataloader())}


def by_index(batches: Iterable[Batch]) -> dict[int, dict[str, list[int]]]:
    """Each text's values without padding."""
    found = {}
    for batch in batches:
        counts = batch["attention_mask"].bool()
        for row, index in enumerate(batch["index"].tolist()):
            columns = {name: values[row] for name, values in batch.items() if values.shape == counts.shape}
            found[index] = {name: values[counts[row]].tolist() for name, values in columns.items()}
    return found


def test_words_are_counted_in_the_training_texts_alone(folder: str, tokenizer: Any, monkeypatch: Any) -> None:
    """Whatever the size of the pieces in which they are counted."""
    monkeypatch.setattr("distillery.data.text.CHUNK", 7)
    counts = text_data(folder, raw_texts(Texts(FIRST), test=Texts(SECOND))).word_counts()
    expected = Counter(token for text in FIRST for token in tokenizer(text)["input_ids"])
    assert counts.tolist() == [expected[token] for token in range(len(tokenizer))]


class TestBatches:
    """They are what the tokenizer makes of the texts."""

    def test_texts_and_pairs(self, folder: str, tokenizer: Any) -> None:
        for second in [None, SECOND]:
            for bucket in [0, 2]:
                targets = [number % 3 for number in range(50)]
                data = text_data(folder, raw_texts(Texts(FIRST, second), targets), bucket=bucket, eval_batch_size=20)
                served = loaders(data)
                for split, sizes in {"train": [8] * 6 + [2], "test": [20, 20, 10]}.items():
                    assert [len(batch["index"]) for batch in served[split]] == sizes
                    for batch in served[split]:
                        index = batch["index"].tolist()
                        pairs = None if second is None else [second[i] for i in index]
                        expected = tokenizer([FIRST[i] for i in index], pairs, padding="longest", return_tensors="pt")
                        assert batch.keys() == {*expected, "target", "index"}
                        for name, values in expected.items():
                            assert torch.equal(batch[name], values), name
                        assert batch["target"].tolist() == [targets[i] for i in index]
                assert any(batch["token_type_ids"].any() for batch in served["test"]) == (second is not None)
                assert data.remarks == ()

    def test_numbers(self, folder: str) -> None:
        data = text_data(folder, raw_texts(Texts(FIRST), [number / 4 for number in range(50)]))
        for batch in data.train_dataloader():
            assert batch["target"].dtype == torch.float32
            assert batch["target"].tolist() == [index / 4 for index in batch["index"].tolist()]

    def test_words_have_their_label_at_their_first_token(self, folder: str, tokenizer: Any) -> None:
        for max_length in [128, 9]:
            data = text_data(folder, Texts(WORDS, labels=LABELS), max_length=max_length)
            several = 0
            for batch in data.train_dataloader():
                samples = []
                for index in batch["index"].tolist():
                    tokens = tokenizer(WORDS[index], is_split_into_words=True, truncation=True, max_length=max_length)
                    target = [-100] * len(tokens["input_ids"])
                    for word, label in enumerate(LABELS[index]):
                        places = [place for place, at in enumerate(tokens.word_ids()) if at == word]
                        if places:
                            target[places[0]] = label
                        several += len(places) > 1
                    samples.append({**tokens, "labels": target})
                expected = DataCollatorForTokenClassification(tokenizer)(samples)
                assert torch.equal(batch["target"], expected.pop("labels"))
                for name, values in expected.items():
                    assert torch.equal(batch[name], values), name
            assert several > 20

    def test_without_token_types(self, tmp_path: Path) -> None:
        folder = write_tokenizer(tmp_path)
        settings = tmp_path / "tokenizer_config.json"
        settings.write_text(
            settings.read_text().replace("{", '{"model_input_names": ["input_ids", "attention_mask"],', 1)
        )
        batch = next(iter(text_data(folder, Texts(FIRST)).train_dataloader()))
        assert batch.keys() == {"input_ids", "attention_mask", "target", "index"}

    def test_without_a_padding_token(self, tmp_path: Path) -> None:
        """As GPT-2's: what stands where nothing counts is any token."""
        vocabulary = {character: number for number, character in enumerate("abcdefghij")}
        GPT2Tokenizer(vocab=vocabulary, merges=[], unk_token="a").save_pretrained(tmp_path)
        assert AutoTokenizer.from_pretrained(tmp_path).pad_token_id is None
        data = text_data(str(tmp_path), Texts(["bcd", "ef", "g", "hij"]), batch_size=4)
        found = by_index(data.train_dataloader())
        assert [found[index]["input_ids"] for index in range(4)] == [[1, 2, 3], [4, 5], [6], [7, 8, 9]]

    def test_workers_serve_the_same(self, folder: str) -> None:
        alone, shared = (
            list(text_data(folder, Texts(FIRST), mask=0.15, num_workers=workers).train_dataloader())
            for workers in (0, 1)
        )
        for batch, other in zip(alone, shared, strict=True):
            assert all(torch.equal(values, other[name]) for name, values in batch.items())

    def test_ranks_pad_alike(self, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = list(text_data(folder, Texts(FIRST), mask=0.15).train_dataloader())[:-1]  # too small for two
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
        ranks = []
        for rank in (0, 1):
            monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
            ranks.append(list(text_data(folder, Texts(FIRST), mask=0.15).train_dataloader()))
        for batch, *parts in zip(whole, *ranks, strict=True):
            for name, values in batch.items():
                assert torch.equal(values[0::2], parts[0][name])
                assert torch.equal(values[1::2], parts[1][name])


class TestLength:
    def test_longer_ones_are_cut_and_counted(self, folder: str, tokenizer: Any) -> None:
        for second in [None, SECOND]:
            data = text_data(folder, raw_texts(Texts(FIRST, second)), max_length=11)
            remarks = data.remarks  # before anything else is asked for
            found = by_index(data.train_dataloader())
            expected = tokenizer(FIRST, second, truncation=True, max_length=11)
            for index, ids in enumerate(expected["input_ids"]):
                assert found[index]["input_ids"] == ids
                assert found[index]["token_type_ids"] == expected["token_type_ids"][index]
            longer = sum(len(ids) > 11 for ids in tokenizer(FIRST, second)["input_ids"])
            assert longer > 25
            assert remarks == (f"{2 * longer} of 100 texts have more than 11 tokens: truncated (data.max_length)",)

    def test_all_are_counted_across_chunks(self, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = text_data(folder, Texts(FIRST), max_length=11)
        monkeypatch.setattr("distillery.data.text.CHUNK", 7)
        chunked = text_data(folder, Texts(FIRST), max_length=11)
        assert by_index(chunked.train_dataloader()) == by_index(plain.train_dataloader())
        assert chunked.remarks == plain.remarks

    def test_longer_ones_are_refused(self, folder: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        for chunk in [1000, 1]:
            monkeypatch.setattr("distillery.data.text.CHUNK", chunk)
            short_first = sorted(FIRST, key=len)
            lengths = [len(ids) for ids in tokenizer(short_first)["input_ids"]]
            position = next(position for position, length in enumerate(lengths) if length > 20)
            assert position > 20
            data = text_data(folder, Texts(short_first), max_length=20, too_long="refuse")
            said = f"{2 * sum(length > 20 for length in lengths)} of 100 texts have more than 20 tokens"
            with pytest.raises(UserError, match=rf"{said}, .* at position {position}\..*data\.max_length"):
                data.setup()
            text_data(folder, Texts(short_first), max_length=max(lengths), too_long="refuse").setup()

    def test_null_is_what_the_model_reads(self, folder: str, tokenizer: Any) -> None:
        long = "the film " * POSITIONS
        data = text_data(folder, Texts(["good", long]), max_length=None, batch_size=2)
        (batch,) = data.test_dataloader()
        assert batch["input_ids"].shape == (2, POSITIONS)
        assert by_index([batch])[1]["input_ids"] == tokenizer(long, truncation=True)["input_ids"]
        assert f"2 of 4 texts have more than {POSITIONS} tokens" in data.remarks[0]

    def test_null_where_the_tokenizer_knows_no_limit(self, tmp_path: Path) -> None:
        folder = write_tokenizer(tmp_path, positions=int(1e30))
        data = text_data(folder, Texts(["good", "the film " * 500]), max_length=None, batch_size=2)
        (batch,) = data.test_dataloader()
        assert batch["input_ids"].shape == (2, 1002)
        assert data.remarks == ()

    def test_too_few_for_a_pair_with_its_special_tokens(self, folder: str) -> None:
        for max_length in [-1, 0, 3]:
            with pytest.raises(UserError, match=rf"data\.max_length={max_length}: 3 of these are special tokens"):
                text_data(folder, Texts(FIRST, SECOND), max_length=max_length).setup()

    def test_longest_and_median(self, folder: str, tokenizer: Any) -> None:
        data = text_data(folder, raw_texts(Texts(FIRST), test=Texts([*SECOND[:20], "good " * 40])))
        assert data.longest()["input_ids"].tolist() == [tokenizer("good " * 40)["input_ids"]]
        lengths = [len(ids) for ids in tokenizer([*FIRST, *SECOND[:20], "good " * 40])["input_ids"]]
        assert sorted(data.used_lengths().tolist()) == sorted(lengths)
        example = data.example()
        assert example["index"].shape == (8,)
        own = sorted(lengths[:50])
        assert example["attention_mask"].sum(1).tolist() == own[18:26]


class TestSplits:
    def test_only_what_is_served_is_tokenised(self, folder: str, tokenizer: Any) -> None:
        data = text_data(folder, raw_texts(Texts(FIRST), test=Texts(SECOND)), train_size=12, val_size=6)
        splits = data.splits
        for stage, texts in {"train": FIRST, "val": FIRST, "test": SECOND}.items():
            used = set(splits[stage].indices.tolist())
            for position, length in enumerate(splits[stage].inputs.lengths.tolist()):
                assert length == (len(tokenizer(texts[position])["input_ids"]) if position in used else 0)

    def test_one_store_for_splits_of_the_same_texts(self, folder: str) -> None:
        whole = Texts(FIRST)
        targets = torch.arange(50) % 2
        parts = [Split(whole, targets, torch.arange(first, end)) for first, end in ((0, 20), (20, 30), (40, 50))]
        data = text_data(folder, RawData("one", ("a", "b"), parts[0], parts[1], parts[2]), val_size=None)
        assert len({id(split.inputs) for split in data.splits.values()}) == 1
        assert (data.splits["train"].inputs.lengths == 0).nonzero().flatten().tolist() == list(range(30, 40))
        assert by_index(data.val_dataloader()).keys() == set(range(40, 50))

    def test_the_fingerprint(self, folder: str, tmp_path: Path) -> None:
        base = text_data(folder, Texts(FIRST)).fingerprint
        for given in ({"batch_size": 4}, {"seed": 1}, {"bucket": 0}, {"too_long": "refuse"}):
            assert text_data(folder, Texts(FIRST), **given).fingerprint == base
        text_data(folder, Texts(FIRST), max_length=8).setup()  # tokenizers remember how they were last used
        assert text_data(folder, Texts(FIRST)).fingerprint == base
        again, other = tmp_path / "again", tmp_path / "other"
        assert text_data(write_tokenizer(again), Texts(FIRST)).fingerprint == base
        turned = (*VOCABULARY[:5], *reversed(VOCABULARY[5:]))
        changed = {
            text_data(write_tokenizer(other, turned), Texts(FIRST)).fingerprint,
            text_data(folder, Texts([*FIRST[:-1], FIRST[-1] + " so"])).fingerprint,
            text_data(folder, Texts(FIRST, SECOND)).fingerprint,
            text_data(folder, Texts(WORDS, labels=LABELS)).fingerprint,
            text_data(folder, raw_texts(Texts(FIRST), [0] * 49 + [1])).fingerprint,
            text_data(folder, Texts(FIRST), max_length=8).fingerprint,
            text_data(folder, Texts(FIRST), max_length=100).fingerprint,  # nothing is cut, but it might have been
            text_data(folder, Texts(FIRST), train_size=40).fingerprint,
        }
        assert len(changed | {base}) == 9


class TestMaskedTexts:
    def test_targets_are_the_tokens_that_were_there(self, folder: str, tokenizer: Any) -> None:
        data = text_data(folder, Texts(FIRST), mask=0.15, max_length=12)
        for found in (by_index(data.train_dataloader()), by_index(data.test_dataloader())):
            for index, text in enumerate(FIRST):
                ids = tokenizer(text, truncation=True, max_length=12)["input_ids"]
                special = tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
                target, seen = found[index]["target"], found[index]["input_ids"]
                chosen = [place for place, token in enumerate(target) if token != -100]
                assert chosen
                for place, token in enumerate(ids):
                    if place in chosen:
                        assert target[place] == token
                        assert not special[place]
                    else:
                        assert seen[place] == token

    def test_nothing_is_padding_and_predicted(self, folder: str) -> None:
        for batch in text_data(folder, Texts(FIRST), mask=0.5).train_dataloader():
            assert batch["target"].shape == batch["input_ids"].shape
            assert (batch["target"][batch["attention_mask"] == 0] == -100).all()
            assert (batch["input_ids"][batch["attention_mask"] == 0] == 0).all()

    def test_another_mask_in_each_epoch_of_training(self, folder: str) -> None:
        def masked(epoch: int, **given: Any) -> dict[int, dict[str, list[int]]]:
            loader = text_data(folder, Texts(FIRST), mask=0.3, **given).train_dataloader()
            loader.sampler.set_epoch(epoch)
            return by_index(loader)

        first = masked(0)
        assert masked(0) == masked(0, batch_size=10) == masked(0, bucket=0) == first
        for other in (masked(1), masked(0, seed=1)):
            assert sum(other[index]["target"] == first[index]["target"] for index in range(50)) < 10

    def test_the_same_mask_in_every_validation(self, folder: str) -> None:
        """Of each epoch and of each seed, so that scores compare."""
        found = []
        for seed in (0, 1, 2):
            data = text_data(folder, Texts(FIRST), mask=0.3, seed=seed, val_size=20, eval_batch_size=16 + seed)
            for loader in (data.val_dataloader(), data.test_dataloader()):
                for epoch in (0, 1):
                    loader.sampler.set_epoch(epoch)
                    found.append(by_index(loader))
        for number, served in enumerate(found):
            assert served == found[number % 4 - number % 2]

    def test_refused(self, folder: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"data\.mask=1\.5: .*between 0 and 1"):
            text_data(folder, Texts(FIRST), mask=1.5).setup()
        GPT2Tokenizer(vocab={"a": 0, "b": 1}, merges=[], unk_token="a").save_pretrained(tmp_path)
        with pytest.raises(UserError, match=r"data\.mask=0\.15: the tokenizer .* has no mask token"):
            text_data(str(tmp_path), Texts(["a b"] * 4), mask=0.15).setup()


def test_a_restored_loader_serves_the_rest(folder: str) -> None:
    for mask in [None, 0.15]:
        whole, first, second = (text_data(folder, Texts(FIRST), mask=mask).train_dataloader() for _ in range(3))
        for loader in (whole, first, second):
            loader.sampler.set_epoch(3)
        batches = iter(first)
        served = [next(batches) for _ in range(3)]
        second.load_state_dict(first.state_dict())
        for expected, batch in zip(whole, [*served, *second], strict=True):
            assert all(torch.equal(values, batch[name]) for name, values in expected.items())


def test_tokens_are_kept_on_the_disk(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, calls = tmp_path / "cache", [0]
    monkeypatch.setenv("DISTILLERY_CACHE", str(cache))

    def counting(*arguments: Any) -> Any:
        calls[0] += 1
        return tokenised(*arguments)

    def served(texts: Texts, tokenizer: str = folder, **settings: Any) -> tuple[Any, ...]:
        calls[0] = 0
        data = text_data(tokenizer, texts, **settings)
        return by_index(data.train_dataloader()), data.remarks, data.fingerprint

    monkeypatch.setattr("distillery.data.passages.tokenised", counting)
    turned = write_tokenizer(tmp_path / "turned", (*VOCABULARY[:5], *reversed(VOCABULARY[5:])))
    for given in [
        {"texts": Texts(FIRST)},
        {"texts": Texts(FIRST), "max_length": 11},
        {"texts": Texts(FIRST, SECOND), "max_length": 11},
        {"texts": Texts(WORDS, labels=LABELS)},
        {"texts": Texts(FIRST), "tokenizer": turned},
        {"texts": Texts(FIRST), "train_size": 20},
    ]:
        first = served(**given)
        assert calls[0] > 0, given
        assert served(**given) == first
        assert calls[0] == 0, given
    expected = served(Texts(FIRST))
    for damage in [lambda content: b"", lambda content: content[:-9], lambda content: content[:-1] + b"~"]:
        for file in (cache / "tokens").iterdir():
            file.write_bytes(damage(file.read_bytes()))
        for called in (True, False):
            assert served(Texts(FIRST)) == expected
            assert (calls[0] > 0) == called
    (tmp_path / "file").touch()
    monkeypatch.setenv("DISTILLERY_CACHE", str(tmp_path / "file"))  # no folder: nothing can be kept there
    assert served(Texts(FIRST)) == expected
