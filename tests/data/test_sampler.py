from collections import Counter
from itertools import chain
from typing import Any

import pytest
import torch

from distillery.core.errors import UserError
from distillery.data.sampler import BatchKey, SeededBatchSampler

INDICES = torch.arange(100, 205)


def served(sampler: SeededBatchSampler) -> list[list[int]]:
    return [key.positions for key in sampler]


def test_training_serves_each_sample_once_in_another_order_each_epoch() -> None:
    sampler = SeededBatchSampler(INDICES, 10, seed=1, shuffle=True)
    first = list(sampler)
    assert all(isinstance(key, BatchKey) and key.epoch == 0 for key in first)
    assert [len(key.positions) for key in first] == [10] * 10 + [5]
    assert sorted(i for key in first for i in key.positions) == INDICES.tolist()
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(i for key in second for i in key.positions) == INDICES.tolist()
    assert [key.positions for key in second] != [key.positions for key in first]
    assert served(SeededBatchSampler(INDICES, 10, seed=2, shuffle=True)) != [key.positions for key in first]


def test_evaluation_serves_everything_in_order() -> None:
    sampler = SeededBatchSampler(INDICES, 52)
    assert served(sampler) == [list(range(100, 152)), list(range(152, 204)), [204]]


def test_the_global_batches_do_not_depend_on_the_world() -> None:
    for world in [2, 3, 5]:
        for shuffle in [True, False]:
            whole = served(SeededBatchSampler(INDICES, 10, seed=3, shuffle=shuffle))
            ranks = [served(SeededBatchSampler(INDICES, 10, 3, shuffle, rank, world)) for rank in range(world)]
            assert {len(batches) for batches in ranks} == {len(ranks[0])}
            kept = len(ranks[0])
            assert kept == (len(whole) - 1 if shuffle and len(whole[-1]) < 2 * world else len(whole))
            for number in range(kept):
                parts = [batches[number] for batches in ranks]
                assert all(len(part) >= (2 if shuffle else 1) for part in parts)
                assert sorted(chain.from_iterable(parts)) == sorted(whole[number])


def test_a_small_rest_is_left_out_in_training_and_joined_in_evaluation() -> None:
    assert [len(b) for b in served(SeededBatchSampler(INDICES[:21], 10, shuffle=True))] == [10, 10]
    assert [len(b) for b in served(SeededBatchSampler(INDICES[:22], 10, shuffle=True))] == [10, 10, 2]
    assert [len(b) for b in served(SeededBatchSampler(INDICES[:22], 10, shuffle=True, drop_last=True))] == [10, 10]
    ranks = [served(SeededBatchSampler(INDICES[:21], 10, rank=rank, world=2)) for rank in range(2)]
    assert [len(b) for b in ranks[0]] == [5, 6]
    assert sorted(chain.from_iterable(ranks[0] + ranks[1])) == INDICES[:21].tolist()


def test_the_published_number_of_steps() -> None:
    sampler = SeededBatchSampler(torch.arange(50_000), 64, shuffle=True)
    sizes = [len(batch) for batch in served(sampler)]
    assert len(sampler) == len(sizes) == 782
    assert sizes[-1] == 16


def test_too_few_samples_are_refused() -> None:
    for size, batch_size, world, shuffle in [(1, 10, 1, True), (3, 10, 2, True), (100, 3, 2, True), (1, 4, 2, False)]:
        with pytest.raises(UserError, match=r"too (few|small)"):
            SeededBatchSampler(torch.arange(size), batch_size, shuffle=shuffle, world=world)


def test_a_restored_sampler_serves_the_rest() -> None:
    sampler = SeededBatchSampler(INDICES, 10, shuffle=True)
    sampler.set_epoch(3)
    whole = served(sampler)
    sampler.served = 4
    restored = SeededBatchSampler(INDICES, 10, shuffle=True)
    restored.load_state_dict(sampler.state_dict())
    restored.set_epoch(3)
    assert len(restored) == 11
    assert served(restored) == whole[4:]
    assert served(restored) == whole


def test_a_restored_position_is_dropped_in_another_epoch_or_after_the_last_batch() -> None:
    sampler = SeededBatchSampler(INDICES, 10, shuffle=True)
    sampler.served = 4
    restored = SeededBatchSampler(INDICES, 10, shuffle=True)
    restored.load_state_dict(sampler.state_dict())
    restored.set_epoch(1)
    assert len(served(restored)) == 11
    sampler.served = 11
    restored.load_state_dict(sampler.state_dict())
    assert len(served(restored)) == 11


def test_a_position_among_other_batches_is_refused() -> None:
    sampler = SeededBatchSampler(INDICES, 10, shuffle=True)
    sampler.served = 4
    with pytest.raises(UserError, match="4 of 11 batches of 10"):
        SeededBatchSampler(INDICES, 20, shuffle=True).load_state_dict(sampler.state_dict())
    sampler.served = 11
    SeededBatchSampler(INDICES, 20, shuffle=True).load_state_dict(sampler.state_dict())


def test_repeated_samples_share_every_batch() -> None:
    """Each other sample is served once an epoch, the repeated ones as often as that takes, never twice in a batch."""
    repeated, others = torch.arange(7), torch.arange(100, 131)
    given = {"batch_size": 8, "seed": 1, "shuffle": True, "repeated": repeated, "repeats": 3}
    sampler = SeededBatchSampler(others, **given)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = served(sampler)
        assert len(sampler) == len(batches) == 7  # 31 samples, 5 in a batch
        assert sorted(i for batch in batches for i in batch if i >= 100) == others.tolist()
        assert [sum(i < 100 for i in batch) for batch in batches] == [3] * 7
        assert all(len(set(batch)) == len(batch) for batch in batches)
        counts = Counter(i for batch in batches for i in batch if i < 100)
        assert sum(counts.values()) == 21
        assert max(counts.values()) <= 4
    assert served(sampler) == batches
    sampler.set_epoch(0)
    assert served(sampler) != batches
    ranks = [SeededBatchSampler(others, rank=rank, world=2, **given) for rank in range(2)]
    for whole, *parts in zip(served(sampler), *map(served, ranks), strict=True):
        assert sorted(chain.from_iterable(parts)) == sorted(whole)
        assert min(sum(i < 100 for i in part) for part in parts) == 1  # each rank has its share
    sampler.served = 4
    restored = SeededBatchSampler(others, **given)
    restored.load_state_dict(sampler.state_dict())
    assert served(restored) == served(sampler)[4:]
    sampler = SeededBatchSampler(others, lengths=torch.arange(131), bucket=3, **given)
    assert [sum(i < 100 for i in batch) for batch in served(sampler)] == [3] * 7
    assert sorted(i for batch in served(sampler) for i in batch if i >= 100) == others.tolist()


def test_repeated_samples_alone_fill_a_given_number_of_batches() -> None:
    labelled = torch.arange(7)
    sampler = SeededBatchSampler(labelled, 8, shuffle=True, repeated=labelled, repeats=3, batches=5)
    assert len(sampler) == 5
    assert [len(set(batch)) for batch in served(sampler)] == [3] * 5
    assert set(chain.from_iterable(served(sampler))) == set(range(7))
    with pytest.raises(UserError, match="A batch of 3 samples is too small for 2 process"):
        SeededBatchSampler(labelled, 8, shuffle=True, repeated=labelled, repeats=3, batches=5, world=2)


COUNTS = {0: 90, 1: 7, 2: 1, 5: 2}  # samples of each class; some more have none
LABELS = torch.tensor([label for label, count in COUNTS.items() for _ in range(count)] + [-1] * 5)


def balanced(indices: torch.Tensor, epoch: int = 0, **given: Any) -> list[list[int]]:
    sampler = SeededBatchSampler(indices, 10, seed=1, shuffle=True, classes=LABELS, **given)
    sampler.set_epoch(epoch)
    return served(sampler)


def test_balanced_classes_are_served_equally_often() -> None:
    epochs = [Counter(chain.from_iterable(balanced(torch.arange(100), epoch))) for epoch in range(40)]
    for counts in epochs:
        of_classes = Counter[int]()
        for position, count in counts.items():
            of_classes[int(LABELS[position])] += count
        assert of_classes == dict.fromkeys(COUNTS, 25)  # 100 samples, four classes
        assert {counts[position] for position in range(90, 97)} == {3, 4}  # 25 of 7 samples
        assert counts[97] == 25
        assert max(counts[position] for position in range(90)) == 1
    assert epochs[0].keys() != epochs[1].keys(), "another part of the frequent class"
    seen = sum(epochs, Counter())
    assert all(2 <= seen[position] <= 25 for position in range(90)), "11 times in 40 epochs, on average"
    for epoch in range(2):
        counts = Counter(LABELS[list(chain.from_iterable(balanced(torch.arange(1, 100), epoch)))].tolist())
        assert sorted(counts.values()) == [24, 25, 25, 25]


def test_balanced_batches_are_the_same_for_any_number_of_processes_and_after_a_stop() -> None:
    whole = balanced(torch.arange(100), 3)
    ranks = [balanced(torch.arange(100), 3, rank=rank, world=2) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*ranks, strict=True)] == [sorted(batch) for batch in whole]
    stopped, resumed = (SeededBatchSampler(torch.arange(100), 10, 1, True, classes=LABELS) for _ in range(2))
    stopped.set_epoch(3)
    iterator = iter(stopped)
    first = [next(iterator).positions for _ in range(4)]
    stopped.served = 4
    resumed.load_state_dict(stopped.state_dict())
    assert first + served(resumed) == whole


def test_balanced_samples_beside_unlabelled_ones() -> None:
    counts = Counter(chain.from_iterable(balanced(torch.arange(105))))
    assert all(counts[position] == 1 for position in range(100, 105)), "those without a label once"
    assert sum(counts.values()) == 105
    repeated = balanced(torch.arange(100, 105), repeated=torch.arange(100), repeats=8)
    assert [int((LABELS[batch] < 0).sum()) for batch in repeated] == [2, 2, 1]
    assert [len(batch) for batch in repeated] == [10, 10, 9]
    alone = balanced(torch.arange(100), repeated=torch.arange(100), repeats=10, batches=30)
    assert Counter(LABELS[list(chain.from_iterable(alone))].tolist()) == dict.fromkeys(COUNTS, 75)
