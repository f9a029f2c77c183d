import numpy as np
import pytest
import torch

from distillery.data.splits import class_quotas, stratified
from distillery.errors import UserError


def test_quotas_by_the_largest_remainder() -> None:
    # Exact shares 4.7, 3.0, 1.3, 1.0: the missing one goes to the remainder .7.
    assert class_quotas(torch.tensor([47, 30, 13, 10]), 10).tolist() == [5, 3, 1, 1]


def test_a_rare_class_gets_one_from_the_largest() -> None:
    assert class_quotas(torch.tensor([98, 1, 0, 1]), 4).tolist() == [2, 1, 0, 1]


@pytest.mark.parametrize("size", [10, 57, 100, 333])
def test_class_counts_and_disjointness(size: int) -> None:
    targets = torch.from_numpy(np.random.default_rng(0).choice(10, 400, p=np.arange(1, 11) / 55))
    indices = torch.arange(0, 400, 1)[targets != 3]
    drawn, rest = stratified(targets, indices, size, seed=4)
    assert len(drawn) == len(set(drawn.tolist())) == size
    assert sorted(drawn.tolist() + rest.tolist()) == indices.tolist()
    counts = np.bincount(targets[indices], minlength=10)
    got = np.bincount(targets[drawn], minlength=10)
    assert got[counts > 0].min() >= 1
    if size >= 100:
        assert np.abs(got - counts * size / counts.sum()).max() < 1


def test_the_draw_depends_on_the_seed_alone() -> None:
    targets, indices = torch.arange(400) % 10, torch.arange(400)
    torch.manual_seed(1)
    first, _ = stratified(targets, indices, 100, seed=0)
    torch.manual_seed(2)
    assert torch.equal(stratified(targets, indices, 100, seed=0)[0], first)
    other = set(stratified(targets, indices, 100, seed=1)[0].tolist())
    assert 5 < len(other & set(first.tolist())) < 60


@pytest.mark.parametrize("size", [9, 401])
def test_impossible_sizes_are_refused(size: int) -> None:
    with pytest.raises(UserError, match=r"between 10 .* and 400"):
        stratified(torch.arange(400) % 10, torch.arange(400), size, seed=0)
