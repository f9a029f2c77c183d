"""Batches of tokens of any length, and BERT's masked tokens."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from scipy import stats
from torch import Tensor
from transformers import AutoTokenizer, DataCollatorForTokenClassification

from distillery.core.random import uniforms
from distillery.data.tokens import Masking, Tokens
from fixtures.texts import sentences, write_tokenizer

PAD, CLS, SEP, MASK, FIRST, SIZE = 0, 2, 3, 4, 5, 1000  # SIZE in all
SPECIAL = (1, 2, 3, 4)  # that of padding is none of them, so that it is the mask which keeps it out
PADDING = {"input_ids": PAD, "token_type_ids": 0, "target": -100}


class TestBatch:
    def test_as_transformers_pads(self, tmp_path: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(write_tokenizer(tmp_path))
        samples = [tokenizer(text, text[:9]) for text, _ in sentences(20)]
        for sample in samples:
            sample["labels"] = [token % 7 for token in sample["input_ids"]]
        names = {"input_ids": "input_ids", "token_type_ids": "token_type_ids", "target": "labels"}
        lengths = torch.tensor([len(sample["input_ids"]) for sample in samples])
        flat = {
            column: torch.tensor([value for sample in samples for value in sample[name]], dtype=torch.int32)
            for column, name in names.items()
        }
        tokens = Tokens(flat, lengths.cumsum(0) - lengths, lengths, PADDING, b"")
        for index in ([3], [7, 2, 19, 0], list(range(20))):
            expected = DataCollatorForTokenClassification(tokenizer)([samples[i] for i in index])
            batch = tokens.batch(torch.tensor(index), int(lengths[index].max()))
            assert batch.keys() == {*names, "attention_mask"}
            assert all(values.dtype == torch.int64 for values in batch.values())
            for column, values in batch.items():
                assert torch.equal(values, expected[names.get(column, column)]), column

    def test_padded_to_more_than_its_own_longest(self) -> None:
        """On two ranks, where the longest text is the other's."""
        flat = {"input_ids": torch.tensor([11, 12, 13, 14])}
        tokens = Tokens(flat, torch.tensor([3, 0]), torch.tensor([1, 3]), {"input_ids": 9}, b"")
        batch = tokens.batch(torch.tensor([1, 0]), 5)
        assert batch["input_ids"].tolist() == [[11, 12, 13, 9, 9], [14, 9, 9, 9, 9]]
        assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]


class Masked(NamedTuple):
    """A batch before and after it was masked, and which of its tokens are neither special nor padding."""

    ids: Tensor
    seen: Tensor
    target: Tensor
    plain: Tensor


def texts(lengths: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """[CLS] so many random tokens [SEP] [PAD] …"""
    longest = int(lengths.max()) + 2
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(FIRST, SIZE, (len(lengths), longest), generator=draw)
    place = torch.arange(longest)
    ids[:, 0] = CLS
    ids[place == lengths[:, None] + 1] = SEP
    mask = place <= lengths[:, None] + 1
    return {"input_ids": ids.masked_fill(~mask, PAD), "attention_mask": mask.long()}


def masked(lengths: Tensor, share: float = 0.15, epoch: int = 0, seed: int = 0) -> Masked:
    batch = texts(lengths)
    uniform = uniforms(seed, epoch, torch.arange(len(lengths)), 0, 3 * batch["input_ids"].shape[1])
    found = Masking(share, MASK, SIZE, SPECIAL)(batch, uniform)
    assert torch.equal(found["attention_mask"], batch["attention_mask"])
    plain = (batch["input_ids"] >= FIRST) & batch["attention_mask"].bool()
    return Masked(batch["input_ids"], found["input_ids"], found["target"], plain)


@pytest.fixture(scope="module")
def many() -> Masked:
    """200,000 tokens in texts of 60 to 140: almost none of them would be without a choice."""
    return masked(60 + torch.arange(2000) % 81)


def likely(successes: Tensor, trials: Tensor, share: float) -> bool:
    """Whether so many successes are no wonder: the exact binomial test, at one in a thousand."""
    return stats.binomtest(int(successes.sum()), int(trials.sum()), share).pvalue > 1e-3


class TestMasking:
    def test_what_is_chosen(self, many: Masked) -> None:
        chosen = many.target != -100
        assert not (chosen & ~many.plain).any()
        assert torch.equal(many.target[chosen], many.ids[chosen])
        assert torch.equal(many.seen[~chosen], many.ids[~chosen])
        assert likely(chosen, many.plain, 0.15)

    def test_what_is_seen_of_it(self, many: Masked) -> None:
        """80 % [MASK], 10 % as it was and 10 % any token, which is the same one once in a thousand."""
        chosen = many.target != -100
        as_mask, as_it_was = chosen & (many.seen == MASK), chosen & (many.seen == many.ids)
        other = chosen & ~as_mask & ~as_it_was
        assert likely(as_mask, chosen, 0.8 + 0.1 / SIZE)
        assert likely(as_it_was, chosen, 0.1 + 0.1 / SIZE)
        assert likely(other, chosen, 0.1 * (SIZE - 2) / SIZE)
        counts = torch.histc(many.seen[other].float(), bins=20, min=0, max=SIZE)
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3
        assert many.seen[other].min() < SIZE / 100
        assert many.seen.max() < SIZE

    def test_every_place_is_as_likely(self, many: Masked) -> None:
        chosen = (many.target != -100)[:, 1:61]  # all texts have these
        assert stats.chisquare(chosen.sum(0).numpy()).pvalue > 1e-3
        neighbours = chosen[:, 1:] & chosen[:, :-1]
        assert likely(neighbours, torch.ones_like(neighbours), 0.15**2)

    def test_each_text_has_one_at_least(self) -> None:
        found = masked(torch.full((3000,), 4), share=1e-6)
        chosen = (found.target != -100) & found.plain
        assert (chosen.sum(1) == 1).all()
        assert stats.chisquare(chosen[:, 1:5].sum(0).numpy()).pvalue > 1e-3
        one = masked(torch.ones(50, dtype=torch.int64))
        assert torch.equal(one.target[:, 1], one.ids[:, 1])

    def test_a_text_of_special_tokens_only(self) -> None:
        found = masked(torch.tensor([0, 3]), share=0.999)
        assert (found.target[0] == -100).all()
        assert torch.equal(found.seen[0], found.ids[0])
        assert (found.target[1, 1:4] != -100).all()

    def test_the_draw_is_of_seed_epoch_and_text(self) -> None:
        lengths = torch.full((200,), 60)
        first = masked(lengths)
        assert torch.equal(masked(lengths).target, first.target)
        for other in (masked(lengths, epoch=1), masked(lengths, seed=1)):
            assert torch.equal(other.ids, first.ids)
            both = (other.target != -100) & (first.target != -100)
            assert likely(both, first.plain, 0.15**2)
        assert len((first.target != -100).unique(dim=0)) == 200

    def test_the_draw_is_not_of_the_padding_and_the_other_texts(self) -> None:
        lengths = 5 + torch.arange(40) % 30
        whole = masked(lengths)
        batch = texts(lengths)
        for index in (torch.tensor([17]), torch.arange(39, -1, -3), torch.tensor([4, 5, 6])):
            for length in (int(lengths[index].max()) + 2, 50):
                own = {name: torch.zeros(len(index), length, dtype=torch.int64) for name in batch}
                shown = min(length, batch["input_ids"].shape[1])
                for name, values in own.items():
                    values[:, :shown] = batch[name][index, :shown]
                found = Masking(0.15, MASK, SIZE, SPECIAL)(own, uniforms(0, 0, index, 0, 3 * length))
                assert torch.equal(found["input_ids"][:, :shown], whole.seen[index, :shown])
                assert torch.equal(found["target"][:, :shown], whole.target[index, :shown])
                assert (found["target"][:, shown:] == -100).all()
