"""The objective: the task loss and the distillation losses, weighted and summed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distillery.errors import UserError
from distillery.losses.term import Term
from distillery.signals import Signals
from distillery.tasks import Classification


@dataclass
class Losses:
    """`total` is what is minimised; `terms` holds it as `loss`, and each loss by name, unweighted and detached."""

    total: Tensor
    terms: dict[str, Tensor]


class Objective(nn.Module):
    """total = task.weight · task loss + Σ weight · distillation loss.

    A loss that is a sum over rows is divided by the rows of the global batch, so that the gradient which DDP
    averages over its ranks is that of one big batch, also where the ranks' shares differ.

    Args:
        task: owns the hard-label loss and the rows that count.
        terms: the distillation losses by name, as in `cfg.loss`.

    Raises:
        UserError: a weight that is no finite number, or a loss whose name is taken.
    """

    def __init__(self, task: Classification, terms: Mapping[str, Term]) -> None:
        super().__init__()
        _refuse_weight("task", task.weight)
        for name, term in terms.items():
            _refuse_weight(f"loss.{name}", term.weight)
            if name in ("loss", "task") or hasattr(nn.ModuleDict, name):
                raise UserError(f"loss.{name}: a loss cannot be called {name!r}. Give it another key after @loss.")
        self.task = task
        self.terms = nn.ModuleDict(terms)

    def forward(self, student: Signals, teachers: Mapping[str, Signals], batch: Mapping[str, Tensor]) -> Losses:
        rows, target = self.task.rows(student, batch)
        teacher_rows = {name: self.task.rows(signals, batch)[0] for name, signals in teachers.items()}
        per_row = _RowMean(rows.logits)
        losses = {"task": per_row(self.task.loss(rows.logits, target))}
        total = self.task.weight * losses["task"]
        for name, term in self.terms.items():
            assert isinstance(term, Term)
            value = term(rows, teacher_rows[term.teacher], {**batch, "target": target})
            losses[name] = per_row(value) if term.contract.per_sample else value
            total = total + term.weight * losses[name]
        return Losses(total, {name: value.detach() for name, value in {"loss": total, **losses}.items()})


def _refuse_weight(path: str, weight: object) -> None:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise UserError(f"{path}.weight={weight}: it must be a finite number.")


class _RowMean:
    """Sum over this rank's rows × ranks ÷ rows of the global batch: its mean over ranks is the global mean."""

    def __init__(self, logits: Tensor) -> None:
        self.rows: Tensor | int = len(logits)
        self.ranks = 1
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self.ranks = dist.get_world_size()
            self.rows = torch.tensor(len(logits), device=logits.device)
            dist.all_reduce(self.rows)

    def __call__(self, values: Tensor) -> Tensor:
        return values.sum() * self.ranks / self.rows
