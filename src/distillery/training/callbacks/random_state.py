"""The state of the random generators in the checkpoint: a resumed run's dropout draws what it would have drawn."""

import warnings
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor

from distillery.core.process import world_size

KEY = "random_state"  # in a checkpoint


class RandomState(L.Callback):
    """Stores PyTorch's generators, the CPU's and that of this rank's accelerator; each rank has its own.

    Nothing here draws from Python's or NumPy's. They are put back when all else has started, for what starts may
    draw, too: to be the last of the callbacks but those that save.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Tensor] = {}

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        # all ranks are here, though the first alone writes
        checkpoint[KEY] = {kind: _gathered(module, _generator(kind).get_rng_state()) for kind in _kinds(module.device)}

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        states: dict[str, Tensor] | None = checkpoint.get(KEY)
        if states is None:  # version 0.1 did not store them
            return
        if len(states["cpu"]) == trainer.world_size:
            self._restored = {kind: each[trainer.global_rank].clone() for kind, each in states.items()}
        else:
            warnings.warn(
                f"The run was started on {len(states['cpu'])} processes and goes on on {trainer.world_size}: what is "
                "random in its networks, as dropout, is drawn anew.",
                stacklevel=2,
            )

    def on_stage_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._restored.clear()  # a stage begins with a seed

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for kind in _kinds(module.device):
            if kind in self._restored:
                _generator(kind).set_rng_state(self._restored[kind])


def _gathered(module: L.LightningModule, state: Tensor) -> Tensor:
    """Those of all ranks, [ranks, bytes]."""
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
