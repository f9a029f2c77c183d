"""Reports the size of each loss, and of its gradient, in the first steps: losses too weak to matter stand out."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from pydantic import NonNegativeInt
from rich.table import Table
from torch import Tensor, nn

from distillery.core.terminal import plain_console, say, telling
from distillery.training.distiller import Distiller
from distillery.training.gradient_norms import gradient_norms, is_measurable

FIGURES = ("raw", "weighted", "gradient", "share")
APART = 100  # a loss whose gradient is so many times smaller than another's has no influence


class ScaleReport(L.Callback):
    """Means over the first steps of each stage: each loss, raw and weighted, its gradient's norm and share.

    The norm is that of the weighted loss's gradient at the student's own parameters; the shares sum to 1. The figures
    are printed as a table and logged as `scale/<loss>/<figure>`. It warns of a loss whose share is less than a
    hundredth of another's, unless its weight is 0 or has a schedule. Training is not affected; each of these steps
    costs one more backward for each loss. Compiled and sharded students are not measured.

    Args:
        steps: the number of steps.
    """

    def __init__(self, steps: NonNegativeInt = 10) -> None:
        self.steps = steps
        self._names: list[str] = []
        self._rows: list[Tensor] = []  # one a batch: [losses, 3]; raw, weighted, gradient

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, Distiller)
        self._measures = is_measurable(module)
        if not self._measures and _shown(trainer):
            say("No scale report: a compiled or sharded student allows one backward pass a step.")

    def on_before_backward(self, trainer: L.Trainer, module: L.LightningModule, loss: Tensor) -> None:
        assert isinstance(module, Distiller)
        if trainer.global_step - module.stage_start_step >= self.steps or not self._measures:
            return
        if module.losses is None:  # a CUDA graph has been replayed, backward and all
            return
        self._names = [*module.losses.weights]
        losses = torch.stack([module.losses.terms[name] for name in self._names])
        raw = trainer.strategy.reduce(losses, reduce_op="mean").cpu().double()
        weights, norms = (
            torch.tensor([figures[name] for name in self._names], dtype=torch.double)
            for figures in (module.losses.weights, gradient_norms(trainer, module))
        )
        row = torch.stack([raw, weights * raw, weights.abs() * norms], 1)
        if row.isfinite().all():
            self._rows.append(row)  # otherwise TermMonitor stops the run

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, Distiller)
        if trainer.global_step - module.stage_start_step >= self.steps:
            self.on_train_end(trainer, module)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, Distiller)
        if not self._rows:
            return
        found, steps = figures(self._names, self._rows), len(self._rows)
        self._rows.clear()
        for logger in trainer.loggers:
            logged = {f"scale/{name}/{key}": value for name, row in found.items() for key, value in row.items()}
            logger.log_metrics(logged, step=trainer.global_step)
        if not trainer.is_global_zero:
            return
        if _shown(trainer):
            plain_console().print(table(found, steps))
        scheduled = module.objective.schedules
        shares = {
            name: row["share"]
            for name, row in found.items()
            if row["weighted"] != 0 and f"{name}.weight" not in scheduled
        }
        if warning := unheard(shares, module.objective.response_losses):
            warnings.warn(warning, stacklevel=1)

    on_stage_end = on_train_end


def _shown(trainer: L.Trainer) -> bool:
    return trainer.is_global_zero and telling()


def figures(names: Sequence[str], rows: Sequence[Tensor]) -> dict[str, dict[str, float]]:
    """Means over the rows, by loss, and the share of each gradient in their sum."""
    means = torch.stack([*rows]).mean(0)
    shares = nn.functional.normalize(means[:, 2:], p=1, dim=0)
    found = torch.cat([means, shares], 1).tolist()
    return {name: dict(zip(FIGURES, row, strict=True)) for name, row in zip(names, found, strict=True)}


def table(found: Mapping[str, Mapping[str, float]], steps: int) -> Table:
    """The figures as a table."""
    made = Table(title=f"Scale of the losses, first {steps} steps", title_justify="left")
    made.add_column("loss")
    for heading in FIGURES:
        made.add_column("gradient at the student" if heading == "gradient" else heading, justify="right")
    for name, row in found.items():
        made.add_row(name, *(f"{value:.{3 if figure == 'share' else 4}g}" for figure, value in row.items()))
    return made


def unheard(shares: Mapping[str, float], response: Collection[str] = ()) -> str:
    """The warning about losses whose share of the gradient is less than a hundredth of the largest; or nothing.

    The task loss is left out where a loss on logits is heard: the soft targets then take the place of the labels, and
    the literature gives these a small weight (Hinton et al. 2015, section 2).

    Args:
        shares: of the gradient at the student, by loss.
        response: the losses on logits.
    """
    if not shares:
        return ""
    loudest = max(shares, key=lambda name: shares[name])
    faint = [name for name, share in shares.items() if share * APART < shares[loudest]]
    if any(name in shares and name not in faint for name in response):
        faint = [name for name in faint if name != "task"]
    if not faint:
        return ""
    named = " and ".join(f"{_path(name)} has {shares[name]:.2g}" for name in faint)
    return (
        f"Some losses hardly reach the student: of its gradient, {named}, but {_path(loudest)} has "
        f"{shares[loudest]:.2g}, more than {APART} times as much. Check {_path(faint[0])}.weight, or let "
        "objective.balance=auto find weights that pull equally hard."
    )


def _path(name: str) -> str:
    return name if name == "task" else f"loss.{name}"
