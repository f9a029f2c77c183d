"""The objective: the weighted sum of the task loss and the distillation losses."""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any, cast

import torch
from pydantic import FiniteFloat
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.core.kinds import conform
from distillery.losses.chunked import sum_over_rows
from distillery.losses.on_policy import SAMPLED
from distillery.losses.several import Several
from distillery.losses.signals import Signals
from distillery.losses.steps import Steps
from distillery.losses.term import Term
from distillery.tasks.task import Batch, Task, labelled_part, labelled_rows
from distillery.training.gathering import gathered
from distillery.training.hits import Hits, hits
from distillery.training.rollouts import Rollouts
from distillery.training.schedules import Progress, Schedule
from distillery.training.update_counts import UpdateCounts


@dataclass
class Losses:
    """The losses of one batch.

    Attributes:
        total: what is minimised.
        terms: for logs: the total as `loss`, and each loss by name, unweighted and detached.
        weights: what each loss was multiplied by.
        separate: gives each unweighted loss with its graph.
        norms: the norms of their gradients, once `gradient_norms` has computed them.
        hits: for logs, see `hits`; none where logits are computed in chunks.
    """

    total: Tensor
    terms: dict[str, Tensor]
    weights: dict[str, float]
    separate: Callable[[], dict[str, Tensor]]
    norms: dict[str, float] = field(default_factory=dict)
    hits: Hits = field(default_factory=dict)

    @cached_property
    def raw(self) -> dict[str, Tensor]:
        """Each unweighted loss with its graph. Where logits are computed in chunks, they are computed again for it."""
        return self.separate()


class Objective(nn.Module):
    """total = task.weight · task loss + Σ weight · distillation loss.

    A loss that is a sum over rows is divided by the rows of the whole update (`UpdateCounts`). Its gradient is that of
    one big batch, on any number of ranks and with accumulated gradients, even if ranks or batches have unequal shares.
    Where some samples have no label, the task loss and the losses that read labels are computed on, and divided by,
    the labelled rows alone.
    A loss on the relations of a batch compares the samples of each batch; over accumulated batches it is their mean.

    Args:
        task: the hard-label loss, and the rows that count.
        terms: the distillation losses by name, as in `cfg.loss`.
        schedules: of the numbers that change during training, by loss and attribute: `kd.weight`, `task.weight`.
        balance: whether the weights are found from the losses' gradients (`callbacks/balance.py`).
        peers: names of the teachers that are trained, too. Each minimises its own task loss and the terms that name
            it, with the same weights and swapped roles (Zhang et al. 2018, deep mutual learning). These losses are
            added to the total and logged as `<peer>/task` etc. No gradient of a term reaches the network that teaches.

        rollouts: when the student learns from its own texts; None: never. Its `share` may have a schedule.

    Raises:
        UserError: a weight is not a finite number, a loss has a reserved name, or a weight has a schedule and is to be
            balanced.
    """

    def __init__(
        self,
        task: Task,
        terms: Mapping[str, Term],
        schedules: Mapping[str, Schedule] | None = None,
        balance: bool = False,
        peers: Sequence[str] = (),
        rollouts: Rollouts | None = None,
    ) -> None:
        super().__init__()
        conform("task.weight", task.weight, FiniteFloat)
        for name, term in terms.items():
            conform(f"loss.{name}.weight", term.weight, FiniteFloat)
            if name in ("loss", "task", "rollouts") or hasattr(nn.ModuleDict, name):
                raise UserError(f"loss.{name}: a loss cannot have the name {name!r}. Give it another key after @loss.")
        self.task = task
        self.terms = nn.ModuleDict(terms)
        self.schedules = dict(schedules or {})
        self.balance = balance
        self.peers = list(peers)
        self.rollouts = rollouts
        if balance and (both := [path for path in self.schedules if path.endswith(".weight")]):
            path = both[0] if both[0].startswith("task.") else f"loss.{both[0]}"
            raise UserError(
                f"{path} has a schedule, but objective.balance=auto needs constant weights: it measures against "
                f"task.weight and sets the others. Give {path} a number, or set objective.balance=null."
            )

    def follow(self, progress: Progress, met: Container[str] = ()) -> None:
        """Set each number with a schedule to its value. `met`: the schedules whose metric has met the condition."""
        for path, schedule in self.schedules.items():
            owners, name = self._places(path)
            for owner in owners:
                setattr(owner, name, schedule.value(replace(progress, met=path in met)))

    def changing(self) -> dict[str, float]:
        """The current values of the numbers that change during training, by loss and attribute: `kd.weight`."""
        balanced = [f"{name}.weight" for name in self.terms] if self.balance else []
        places = {path: self._places(path) for path in (*self.schedules, *balanced)}
        return {path: getattr(owners[0], name) for path, (owners, name) in places.items()}

    @property
    def response_losses(self) -> list[str]:
        """The names of the losses on logits."""
        return [name for name, term in self.terms.items() if cast(Term, term).contract.needs == "logits"]

    @property
    def reads_samples(self) -> bool:
        """Whether a loss reads with what log-probability the student has drawn a token."""
        return any(cast(Term, term).contract.reads_samples for term in self.terms.values())

    def _places(self, path: str) -> tuple[list[Any], str]:
        """The objects that have this number (each copy of a loss with several teachers), and its attribute name."""
        loss, _, name = path.partition(".")
        if loss in ("task", "rollouts"):
            return [getattr(self, loss)], name
        term = self.terms[loss]
        assert isinstance(term, Term)
        return [*term.by_teacher.values()], name

    def forward(
        self,
        student: Signals,
        teachers: Mapping[str, Signals],
        batch: Mapping[str, Tensor],
        counts: UpdateCounts | None = None,
    ) -> Losses:
        """The losses of one batch.

        Args:
            counts: of the update that the batch belongs to; None: the batch, with those of the other ranks, is all.
        """
        rows, of_rows = self.task.rows(student, batch)
        counts = counts or UpdateCounts.of_batch(of_rows, batch)
        taught = {name: self._rows_of(signals.detach(), batch) for name, signals in teachers.items()}
        terms: dict[str, Any] = dict(self.terms)
        weights = {"task": self.task.weight} | {name: term.weight for name, term in terms.items()}

        def value(name: str, rows: Signals, taught: Mapping[str, Signals], of_rows: Batch) -> Tensor:
            if name == "task":
                return self._of_task(rows, of_rows, batch, counts)
            return _value(terms[name], rows, taught, of_rows, batch, counts)

        if rows.headed is not None and not self.peers:
            return self._in_chunks(value, weights, rows, taught, of_rows)
        rows = rows.computed()
        taught = {name: each.computed() for name, each in taught.items()}
        losses = {name: value(name, rows, taught, of_rows) for name in weights}
        total = _weighted(weights, losses)
        logged = dict(losses)
        for peer in self.peers:
            own = self.task.rows(teachers[peer], batch)[0]
            theirs = {"task": self._of_task(own, of_rows, batch, counts)}
            for name, term in terms.items():
                if peer in term.by_teacher:
                    one = term.by_teacher[peer]
                    theirs[name] = _value(one, own, {peer: rows.detach()}, of_rows, batch, counts)
            total = total + _weighted(weights, theirs)
            logged |= {f"{peer}/{name}": value for name, value in theirs.items()}
        for name, term in terms.items():
            for teacher, one in term.by_teacher.items():
                which = f"{name}.{teacher}" if len(term.by_teacher) > 1 else name
                logged |= {f"{which}.{measure}": value for measure, value in one.measured.items()}
        logged = {name: value.detach() for name, value in {"loss": total, **logged}.items()}
        return Losses(total, logged, weights, lambda: losses, hits=hits(self.task, rows, taught, of_rows))

    def _in_chunks(
        self,
        value: Callable[[str, Signals, Mapping[str, Signals], Batch], Tensor],
        weights: Mapping[str, float],
        rows: Signals,
        taught: Mapping[str, Signals],
        of_rows: Batch,
    ) -> Losses:
        """The losses, those of rows in chunks of rows, so that the student's logits never exist all at once."""
        terms = {n: cast(Term, self.terms[n]) for n in self.response_losses}
        terms = {name: term for name, term in terms.items() if term.contract.per_sample}
        chunked = ["task", *terms]
        steps = {name: [(m, m.done) for m in term.modules() if isinstance(m, Steps)] for name, term in terms.items()}

        def weighted(names: Sequence[str], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
            def losses(student: Signals, teachers: Mapping[str, Signals], part: Batch) -> Tensor:
                for counter, done in chain.from_iterable(steps.get(name, ()) for name in names):
                    counter.done = done  # all chunks are of one batch
                return torch.stack([value(name, student, teachers, part) for name in names])

            assert rows.headed is not None
            size = self.task.rows_per_chunk or max(1, len(rows.headed.hidden))
            return sum_over_rows(losses, rows.headed, taught, of_rows, weights, size)

        total, sums = weighted(chunked, [weights[name] for name in chunked])
        others = {name: value(name, rows, taught, of_rows) for name in weights if name not in chunked}
        total = total + _weighted(weights, others)
        found = dict(zip(chunked, sums, strict=True)) | others
        logged = {"loss": total} | {name: found[name] for name in weights}
        logged = {name: value.detach() for name, value in logged.items()}

        def separate() -> dict[str, Tensor]:
            return {name: others[name] if name in others else weighted([name], [1.0])[0] for name in weights}

        return Losses(total, logged, dict(weights), separate)

    def _rows_of(self, teacher: Signals, batch: Batch) -> Signals:
        """The teacher's rows; with what the batch says of them, if they are not the student's."""
        rows, of_rows = self.task.rows(teacher, batch)
        return rows if teacher.tokenizer is None else replace(rows, of_rows=of_rows)

    def _of_task(self, rows: Signals, of_rows: Batch, batch: Batch, counts: UpdateCounts) -> Tensor:
        """The mean of the task loss over the labelled rows of the update."""
        rows, of_rows = labelled_rows(rows, of_rows, batch)
        return counts.mean(self.task.loss(rows.logits, of_rows["target"]), of_rows=True, labelled=True)


def _value(
    term: Term, student: Signals, teachers: Mapping[str, Signals], of_rows: Batch, samples: Batch, counts: UpdateCounts
) -> Tensor:
    """The term's loss: the mean over all rows or samples of the update if it has a value for each, else a scalar.

    A term that reads labels is given the labelled rows and samples alone, and the mean is that over them; one on tokens
    that the student has drawn is given all, where the batch says which these are. If it has a scalar for each batch,
    that counts as often as the batch has labelled samples.
    """
    on_rows = term.contract.needs == "logits"
    batch = of_rows if on_rows else samples
    drawn = term.contract.reads_samples and SAMPLED in samples
    by_label = term.reads_labels and "labelled" in samples and not drawn
    if by_label:
        known = of_rows["labelled"], samples["labelled"]
        student, teachers = student.take(*known), {name: teachers[name].take(*known) for name in term.by_teacher}
        batch = labelled_part(batch)
    values = {}
    for name, one in term.by_teacher.items():
        given = student, teachers[name], batch
        given = gathered(one, *given) if one.gather and counts.ranks > 1 else given
        if by_label and not len(given[-1]["index"]):
            return _nothing(term, student)
        values[name] = one(*given)
    value = term.combined(values, teachers, batch) if isinstance(term, Several) else values[term.teacher]
    if term.contract.per_sample:
        return counts.mean(value, on_rows, by_label)
    return counts.mean(value * len(batch["index"]), on_rows, by_label) if by_label else value


def _nothing(term: Term, student: Signals) -> Tensor:
    """0, for a batch without a label. It depends on all that the term does: DDP waits for every gradient."""
    return cast(Tensor, sum(each.sum() * 0 for each in (student.logits, *term.parameters())))


def _weighted(weights: Mapping[str, float], losses: Mapping[str, Tensor]) -> Tensor:
    return cast(Tensor, sum(weights[name] * value for name, value in losses.items()))
