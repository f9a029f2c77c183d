import numpy as np
import pytest
import torch
from scipy import stats

from distillery.core.random import hash_key, hash_pairs, integers, permutation, uniforms

GOLDEN = 0x9E3779B97F4A7C15


def splitmix(word: int) -> int:
    """The finaliser in Python's unbounded integers, from the paper."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) % 2**64
    return word ^ (word >> 31)


def test_reference_output_of_splitmix64() -> None:
    """The first output for the state 0, as published with the generator."""
    assert hash_key(0) == 0xE220A8397B1DCDAF


@pytest.mark.parametrize(("seed", "epoch", "view"), [(0, 0, 0), (3, 7, 1), (2**40, 239, 0)])
def test_uniforms_follow_the_definition(seed: int, epoch: int, view: int) -> None:
    index = torch.tensor([0, 1, 49_999, 2**40])
    key = 0
    for counter in (seed, epoch, view):
        key = splitmix((key + GOLDEN + counter) % 2**64)
    expected = [
        [(splitmix((splitmix((i * GOLDEN + key) % 2**64) + k * GOLDEN) % 2**64) >> 40) / 2**24 for k in (1, 2, 3)]
        for i in index.tolist()
    ]
    assert uniforms(seed, epoch, index, view, 3).tolist() == expected


def test_integers_follow_the_definition() -> None:
    index, key = torch.tensor([0, 1, 49_999, 2**40]), 0
    for counter in (3, 7, -2):
        key = splitmix((key + GOLDEN + counter) % 2**64)
    for below in (1, 7, 2**40 + 1):
        expected = [
            (splitmix((splitmix((i * GOLDEN + key) % 2**64) + GOLDEN) % 2**64) >> 1) % below for i in index.tolist()
        ]
        assert integers(3, 7, index, -2, below).tolist() == expected


def test_uniforms_depend_on_nothing_else() -> None:
    index = torch.arange(100)
    state = torch.get_rng_state()
    whole = uniforms(1, 2, index, 0, 4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(uniforms(1, 2, index.flip(0)[:10], 0, 4), whole.flip(0)[:10])
    assert torch.equal(uniforms(1, 2, index, 0, 2), whole[:, :2])


def test_pairs_are_hashed_as_single_counters_are() -> None:
    first, second = torch.tensor([0, 0, 1, 2**40, 7]), torch.tensor([0, 1, 0, 511, 7])
    words = hash_pairs(first, second).tolist()
    expected = [hash_key(a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    assert [word % 2**64 for word in words] == expected


def test_uniforms_are_uniform() -> None:
    values = uniforms(0, 0, torch.arange(50_000), 0, 4).double().numpy()
    assert values.min() >= 0
    assert values.max() < 1
    for column in values.T:
        assert stats.kstest(column, "uniform").pvalue > 0.001
    pairs, *_ = np.histogram2d(values[:, 0], values[:, 1], bins=16, range=[[0, 1]] * 2)
    assert stats.chisquare(pairs.ravel()).pvalue > 0.001


@pytest.mark.parametrize("change", ["seed", "epoch", "index", "view", "n"])
def test_neighbouring_counters_are_independent(change: str) -> None:
    index = torch.arange(50_000)
    counters = {"seed": 0, "epoch": 0, "view": 0}
    first = uniforms(index=index, n=2, **counters)
    if change == "index":
        first, second = first[:-1, 0], first[1:, 0]
    elif change == "n":
        first, second = first[:, 0], first[:, 1]
    else:
        second = uniforms(index=index, n=1, **counters | {change: 1})[:, 0]
        first = first[:, 0]
    table, *_ = np.histogram2d(first.numpy(), second.numpy(), bins=10, range=[[0, 1]] * 2)
    assert stats.chi2_contingency(table).pvalue > 0.001
    assert abs(stats.spearmanr(first, second).statistic) < 4 / len(first) ** 0.5


def test_the_lowest_bit_is_random_too() -> None:
    words = (uniforms(0, 0, torch.arange(50_000), 0, 1) * 2**24).long() & 1
    assert stats.binomtest(int(words.sum()), 50_000).pvalue > 0.001


def test_permutation() -> None:
    state = torch.get_rng_state()
    order = permutation(0, 0, 1000)
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(order.tolist()) == list(range(1000))
    assert torch.equal(order, permutation(0, 0, 1000))
    for other in (permutation(0, 1, 1000), permutation(1, 0, 1000), permutation(0, -1, 1000)):
        assert int((order == other).sum()) < 10
