"""The teacher: a network that is frozen, whatever is done to what surrounds it."""

from collections.abc import Mapping
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn

from distillery.core.errors import UserError, did_you_mean
from distillery.core.roles import FROZEN
from distillery.losses.signals import Signals
from distillery.models.adapters import Adapter
from distillery.models.taps.network import Network
from distillery.models.weights import weights_hash
from distillery.teachers.cache import TeacherCache

BatchNorm = nn.modules.batchnorm._BatchNorm
BatchNormMode = Literal["eval", "train"]


class Teacher(Network):
    """A frozen network: no gradients, evaluation mode that survives every `.train()`, unchanged to the end.

    The Distiller holds its teachers outside its own modules, so they are in no optimizer and no checkpoint.

    Args:
        net, adapter, name: see `Network`.
        source: where the weights came from, for the records.
        bn_mode: "eval" normalises by the running statistics. "train" normalises each training batch by its own
            statistics (as OFD does: Heo et al. 2019, table 8) and still leaves the running ones unchanged.

    Raises:
        UserError: an unknown `bn_mode`.
    """

    role = FROZEN

    def __init__(
        self,
        net: nn.Module,
        adapter: Adapter,
        name: str = "teacher",
        source: str = "",
        bn_mode: BatchNormMode = "eval",
    ) -> None:
        known = get_args(BatchNormMode)
        if bn_mode not in known:
            raise UserError(f"Teacher {name!r}: there is no bn_mode {bn_mode!r}." + did_you_mean(bn_mode, known))
        super().__init__(net, adapter, name)
        self.source = source
        self.requires_grad_(False)
        self.train(False)
        self._per_batch = [m for m in self.modules() if isinstance(m, BatchNorm)] if bn_mode == "train" else []
        for module in self._per_batch:
            module.track_running_stats = False  # in train mode: use the batch's statistics, update nothing
        self.cache: TeacherCache | None = None  # of training samples, where they are cached
        self.stops_at: str | None = None  # the tap after which a training forward ends; see `stop_early`
        self.stops = False

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode, also when the whole that it is part of is put into train mode."""
        return super().train(False)

    def forward(self, batch: Mapping[str, Tensor], training: bool = False) -> Signals:
        if training and self.cache is not None:
            return self.cache(batch)
        return self.compute(batch, training, stop=training and self.stops)

    def stop_early(self, batch: Mapping[str, Tensor]) -> None:
        """End each forward in training at the last tap to run, or at once if none does: nobody reads the logits.

        Call it when everything is tapped. A cached teacher runs but once, and to its end.
        """
        self.stops_at = self.last_tap(batch)
        self.stops = True

    def compute(self, batch: Mapping[str, Tensor], training: bool, stop: bool = False) -> Signals:
        """`forward` without the cache."""
        # no_grad, not inference_mode: the tensors of that one cannot be saved for the backward of an MSE or projector
        with torch.no_grad():
            for module in self._per_batch:
                module.training = training
            return self.observe(batch, stop)

    def fingerprint(self) -> str:
        """SHA-256 of every parameter and buffer."""
        return weights_hash(self.net)
