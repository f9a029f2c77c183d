"""Random numbers of each rank, and their state in the checkpoint: a resumed run draws the same dropout masks."""

import warnings
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor

from distillery.core.process import world_size
from distillery.core.random import hash_key

KEY = "random_state"  # in a checkpoint


class RandomState(L.Callback):
    """Seeds PyTorch's generators for each rank at the start of training, and saves and restores their state.

    All ranks initialise their networks with one seed. With it they would also draw the same dropout masks, and a batch
    would be regularised less than on one process: every rank except the first gets its own seed. The first, and
    so a run on one process, keeps the seed of the run.

    Saved are the generators of the CPU and of this rank's accelerator; nothing here draws from Python's or NumPy's.
    They are restored after everything else has started, which may draw random numbers too: this must be the last
    callback, apart from those that save.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Tensor] = {}

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        # all ranks are here, though the first alone writes
        checkpoint[KEY] = {kind: _gathered(module, _generator(kind).get_rng_state()) for kind in _kinds(module.device)}

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        states: dict[str, Tensor] = checkpoint[KEY]
        if len(states["cpu"]) == trainer.world_size:
            self._restored = {kind: each[trainer.global_rank].clone() for kind, each in states.items()}
        else:
            warnings.warn(
                f"The run was started on {len(states['cpu'])} processes and is resumed on {trainer.world_size}: random "
                "numbers in its networks, such as those of dropout, are not those that it would have drawn.",
                stacklevel=2,
            )

    def on_stage_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._restored.clear()  # the stage's parts have just been initialised with its seed
        self.on_train_start(trainer, module)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.global_rank:
            torch.manual_seed(hash_key(torch.initial_seed(), trainer.global_rank))  # of every device
        for kind in _kinds(module.device):
            if kind in self._restored:
                _generator(kind).set_rng_state(self._restored[kind])


def _gathered(module: L.LightningModule, state: Tensor) -> Tensor:
    """Those of all ranks, [ranks, bytes]. Lightning's `all_gather` warns that it calls what torch has deprecated."""
    own = state.to(module.device)
    found = [torch.empty_like(own) for _ in range(world_size())]
    if len(found) == 1:
        return state[None]
    dist.all_gather(found, own)
    return torch.stack(found).cpu()


def _kinds(device: torch.device) -> set[str]:
    return {"cpu", device.type}


def _generator(kind: str) -> Any:
    """Where the generator of the current device of that kind is got and set."""
    return torch if kind == "cpu" else torch.get_device_module(kind)
