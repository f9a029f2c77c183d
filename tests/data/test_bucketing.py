"""Batches of texts of like length: what is gained, and that the order is still one that a run can be resumed in."""

from collections.abc import Iterable
from itertools import chain, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from distillery.data.sampler import BatchKey, SeededBatchSampler

INDICES = torch.arange(40, 1040)
SIZE = 32  # 31 batches and 8 samples


@pytest.fixture(scope="module")
def lengths() -> Tensor:
    """Of 1,100 texts: 3 to a hundred tokens, most of them short."""
    draw = torch.Generator().manual_seed(0)
    return (3 + torch.empty(1100).log_normal_(3, 0.5, generator=draw)).long()


def keys(lengths: Tensor, epoch: int = 0, **given: Any) -> list[BatchKey]:
    settings: dict[str, Any] = {"indices": INDICES, "batch_size": SIZE, "shuffle": True, "bucket": 10, "seed": 3}
    sampler = SeededBatchSampler(lengths=lengths, **settings | given)
    sampler.set_epoch(epoch)
    found = list(sampler)
    assert len(found) == len(sampler)
    return found


def served(batches: Iterable[BatchKey]) -> list[int]:
    return list(chain.from_iterable(key.positions for key in batches))


def padding(batches: Iterable[BatchKey], lengths: Tensor) -> float:
    """The share of the batches' places that are padding, counted."""
    places = tokens = 0
    for key in batches:
        own = [int(lengths[position]) for position in key.positions]
        places += len(own) * max(own)
        tokens += sum(own)
    return 1 - tokens / places


def test_each_sample_once(lengths: Tensor) -> None:
    for size in [32, 40, 998, 2000]:
        assert sorted(served(keys(lengths, batch_size=size))) == INDICES.tolist()


def test_the_order_is_of_seed_and_epoch(lengths: Tensor) -> None:
    first = keys(lengths)
    assert keys(lengths) == first
    for other in (keys(lengths, epoch=1), keys(lengths, seed=4)):
        assert sorted(served(other)) == sorted(served(first))
        assert {frozenset(key.positions) for key in other}.isdisjoint({frozenset(key.positions) for key in first})


def test_little_is_padding(lengths: Tensor) -> None:
    plain, sorted_by_ten, whole = (padding(keys(lengths, bucket=bucket), lengths) for bucket in (0, 10, 50))
    assert plain > 0.5
    assert sorted_by_ten < plain / 2
    assert whole < plain / 5


def test_samples_are_drawn_before_they_are_sorted(lengths: Tensor) -> None:
    """A batch is of the samples that so many batches would have had without sorting."""
    for bucket in [1, 3]:
        plain = served(keys(lengths, bucket=0))
        bounds = range(0, len(plain), SIZE * bucket)
        groups = [set(plain[start : start + SIZE * bucket]) for start in bounds]
        batches = keys(lengths, bucket=bucket)
        assert all(sum(set(key.positions) <= group for group in groups) == 1 for key in batches)


def test_the_batches_come_in_any_order(lengths: Tensor) -> None:
    """Short and long ones by turns, and not the same ones last in every epoch."""
    found = [[key.length for key in keys(lengths, epoch=epoch, batch_size=40, bucket=25)] for epoch in range(20)]
    longest = [max(range(25), key=each.__getitem__) for each in found]
    assert len(set(longest)) > 8
    for each in found:
        rises = sum(after > before for before, after in pairwise(each))
        assert 6 <= rises <= 18


def test_an_incomplete_batch_is_the_last(lengths: Tensor) -> None:
    for bucket in [0, 1, 10, 50]:
        for epoch in range(5):
            assert [len(key.positions) for key in keys(lengths, epoch, bucket=bucket)] == [SIZE] * 31 + [8]


def test_no_sample_is_left_out_for_its_length(lengths: Tensor) -> None:
    for size, drop_last in [(37, False), (32, True)]:
        left = [
            set(INDICES.tolist()) - set(served(keys(lengths, epoch, batch_size=size, drop_last=drop_last, bucket=50)))
            for epoch in range(30)
        ]
        assert {len(each) for each in left} == {1000 % size}
        out = torch.tensor(sorted(chain.from_iterable(left)))
        middle = lengths[INDICES].median()
        assert 0.2 < (lengths[out] > middle).double().mean() < 0.8
        assert len(out.unique()) > 0.7 * len(out)


def test_ranks_share_the_batches_and_their_length(lengths: Tensor) -> None:
    for shuffle in [True, False]:
        whole = keys(lengths, shuffle=shuffle)
        ranks = [keys(lengths, shuffle=shuffle, rank=rank, world=2) for rank in range(2)]
        for key, *parts in zip(whole, *ranks, strict=True):
            assert [part.positions for part in parts] == [key.positions[0::2], key.positions[1::2]]
            assert {part.length for part in parts} == {key.length} == {int(lengths[key.positions].max())}


def test_without_a_bucket_the_order_is_that_of_images(lengths: Tensor) -> None:
    for shuffle in (True, False):
        given: dict[str, Any] = {"batch_size": SIZE, "seed": 3, "shuffle": shuffle}
        plain, images = keys(lengths, bucket=0, **given), list(SeededBatchSampler(INDICES, **given))
        assert [key.positions for key in plain] == [key.positions for key in images]
        assert [key.length for key in plain] == [int(lengths[key.positions].max()) for key in images]
        assert {key.length for key in images} == {0}


def test_evaluation_is_sorted(lengths: Tensor) -> None:
    found = served(keys(lengths, shuffle=False))
    assert found == sorted(INDICES.tolist(), key=lambda position: int(lengths[position]))  # stable
    assert padding(keys(lengths, shuffle=False), lengths) < 0.1


def test_a_restored_sampler_serves_the_rest(lengths: Tensor) -> None:
    first, second = (
        SeededBatchSampler(INDICES, SIZE, seed=3, shuffle=True, lengths=lengths, bucket=10) for _ in range(2)
    )
    first.set_epoch(2)
    whole = list(first)
    first.served = 9
    second.load_state_dict(first.state_dict())
    second.set_epoch(2)
    assert list(second) == whole[9:]
