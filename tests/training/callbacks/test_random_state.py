"""Each rank has random numbers of its own; those of the first are the run's."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from distillery.training.callbacks.random_state import RandomState


def drawn(rank: int, restored: Tensor | None = None) -> Tensor:
    """A dropout mask of that rank in its first step; and of one with a saved state."""
    torch.manual_seed(5)  # networks are initialised from the seed of the run, equal on all ranks
    trainer: Any = SimpleNamespace(global_rank=rank, world_size=3)
    module: Any = SimpleNamespace(device=torch.device("cpu"))
    callback = RandomState()
    if restored is not None:
        callback.on_load_checkpoint(trainer, module, {"random_state": {"cpu": torch.stack([restored] * 3)}})
    callback.on_train_start(trainer, module)
    return torch.nn.functional.dropout(torch.ones(1000))


def test_ranks_drop_different_units() -> None:
    masks = [drawn(rank) for rank in range(3)]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        shared = (masks[first] == masks[second]).float().mean()
        assert 0.4 < shared < 0.6, "as independent ones"
    assert all(torch.equal(drawn(rank), masks[rank]) for rank in range(3)), "a run repeats"


def test_one_process_draws_what_the_seed_of_the_run_gives() -> None:
    torch.manual_seed(5)
    expected = torch.nn.functional.dropout(torch.ones(1000))
    assert torch.equal(drawn(0), expected)


def test_a_saved_state_is_restored_on_every_rank() -> None:
    generator = torch.Generator().manual_seed(8)
    torch.manual_seed(8)
    expected = torch.nn.functional.dropout(torch.ones(1000))
    for rank in range(3):
        assert torch.equal(drawn(rank, generator.get_state()), expected)
