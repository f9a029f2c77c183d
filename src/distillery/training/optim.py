"""How the student is optimised: parameters in groups, each with its learning rate and weight decay."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

PEAKS = ("max_lr", "base_lr")  # arguments of OneCycleLR and CyclicLR that replace the learning rates of the groups


@runtime_checkable
class TimmScheduler(Protocol):
    """What timm's schedulers are, and torch's are not. Importing timm takes half a second."""

    def step(self, epoch: int) -> None: ...
    def step_update(self, num_updates: int) -> None: ...


Scheduler = LRScheduler | TimmScheduler


@dataclass
class Optim:
    """How the student is optimised.

    Attributes:
        optimizer: makes one of a list of parameters, or of parameter groups.
        scheduler: makes the learning-rate schedule of the optimizer, one of torch or timm; None: the rate is constant.
        interval: how often the scheduler steps, `epoch` or `step`.
        decay_biases_and_norms: whether weight decay applies to parameters of one dimension, too: biases, and the
            weights of normalisations. Transformers are trained without (Devlin et al. 2019, the authors' code).
        lr_scales: factors of the learning rate by the names of parameters in the Distiller; 1 for all others. See
            `lr_scales.py`.
        monitor: the metric that the scheduler is given, if it is a `ReduceLROnPlateau`.
        frequency: the scheduler steps after this many intervals; with a metric of the validation, after each of these.
    """

    optimizer: Callable[[Any], torch.optim.Optimizer]
    scheduler: Callable[..., Scheduler] | None = None
    interval: str = "epoch"
    decay_biases_and_norms: bool = True
    lr_scales: Mapping[str, float] = field(default_factory=dict)
    monitor: str | None = None
    frequency: int = 1

    def make_optimizer(self, named: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """The optimizer of these parameters, each in one group.

        A group holds the parameters with the same factor of the learning rate (`factor`) that are decayed, or are not.
        The groups with the factor 1 come first, then those with greater factors; decayed ones before others.
        """
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in named:
            decayed = self.decay_biases_and_norms or parameter.dim() > 1
            groups.setdefault((self.lr_scales.get(name, 1.0), decayed), []).append(parameter)
        if groups.keys() == {(1.0, True)}:
            return self.optimizer(groups[1.0, True])
        order = sorted(groups, key=lambda group: (group[0] != 1, -group[0], not group[1]))
        optimizer = self.optimizer(
            [{"params": groups[key], "factor": key[0]} | ({} if key[1] else {"weight_decay": 0.0}) for key in order]
        )
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * group["factor"]
        return optimizer

    def make_scheduler(self, optimizer: torch.optim.Optimizer) -> Scheduler | None:
        """The schedule of an optimizer that `make_optimizer` has made: the factors of the groups apply to its peak."""
        if self.scheduler is None:
            return None
        given = getattr(self.scheduler, "keywords", {})
        factors = [group.get("factor", 1.0) for group in optimizer.param_groups]
        peaks = {key: peak for key in PEAKS if isinstance(peak := given.get(key), int | float)}
        return self.scheduler(optimizer, **{key: [peak * factor for factor in factors] for key, peak in peaks.items()})


def step(scheduler: Scheduler, epochs: int, updates: int) -> None:
    """Step a scheduler that watches no metric, at the end of so many epochs or updates: timm's must be told."""
    if isinstance(scheduler, TimmScheduler):
        scheduler.step(epochs)  # does nothing, if the scheduler counts in updates
        scheduler.step_update(updates)
    else:
        scheduler.step()
