"""The base of the losses on logits."""

from collections.abc import Mapping

from torch import Tensor

from distillery.losses.signals import Signals
from distillery.losses.term import Term, hard_target


class LogitTerm(Term):
    """`function` of the rows of logits that count; with `Contract.reads_labels` also of their class indices."""

    def forward(self, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
        """[N], or a scalar. Raises UserError if the loss reads labels and the batch has no class indices."""
        labels = [hard_target(batch, self.name)] if self.contract.reads_labels else []
        return self.loss(student.logits, teacher.logits, *labels)
