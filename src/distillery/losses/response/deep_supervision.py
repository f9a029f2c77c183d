"""Exit branches that learn from labels and from the network's own last layer (Zhang et al., ICCV 2019)."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillery.core.numerics import Reduction, at_least_float32, reduce_rows
from distillery.losses.projectors import ExitBranch
from distillery.losses.response.kd import kd
from distillery.losses.settings import Fraction, Positive
from distillery.losses.signals import Signals
from distillery.losses.term import Contract, Layers, Term, hard_target


def deep_supervision(
    branch_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    alpha: float = 0.3,
    temperature: float = 3.0,
    t_squared: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """(1 - α) · cross-entropy of a branch with the labels + α · KL(last layer ‖ branch), in nats.

    Args:
        branch_logits: [N,C].
        teacher_logits: [N,C], of the network's own last layer, detached.
        target: [N], class indices.
        alpha: weight of the divergence from the last layer; the labels have 1 - α.
        temperature: T of the divergence.
        t_squared: multiply the divergence by T², which the authors do not.
        reduction: 'mean' over rows, or 'none': [N].

    Paper: Be Your Own Teacher, https://arxiv.org/abs/1905.08094, without the paper's hint: for that, add
    `loss/feature=[hint]` with teacher=self. Values equal those of the authors' code without the entropy of the last
    layer: the code has a cross-entropy in place of the divergence, with the same gradient.
    """
    from_labels = F.cross_entropy(at_least_float32(branch_logits), target, reduction="none")
    from_above = kd(branch_logits, teacher_logits, temperature, t_squared=t_squared, reduction="none")
    return reduce_rows((1 - alpha) * from_labels + alpha * from_above, reduction)


class DeepSupervision(Term, function=deep_supervision):
    """`deep_supervision` of an exit branch (pooling and a linear layer) on each student layer, summed.

    The teacher is the student itself, `teacher: self`. Its logits teach every branch, so the teacher layers of the
    pairs are not read. The branches are dropped at export.
    """

    auto = "inner"
    own_student_taps = ("head",)  # its width is the number of classes
    contract = Contract(
        short_name="byot",
        reads_labels=True,
        form="learned",
        reduction="mean over rows, sum over branches",
        scale="0.7 · log C a branch with an untrained student",
        needs="features",
        properties=frozenset({"non_negative", "batch_permutation"}),
        paper="https://arxiv.org/abs/1905.08094",
        formula=(
            r"\sum_b (1-\alpha) \, \mathrm{CE}\big(p(z_b), y\big) + "
            r"\alpha \, \mathrm{KL}\big(p_T(z_s) \,\|\, p_T(z_b)\big)"
        ),
        values_of="the authors' code, without the entropy of the last layer",
    )

    teacher: str = "self"
    layers: Layers | None = "auto"
    alpha: Fraction = 0.3
    temperature: Positive = 3.0
    t_squared: bool = False

    @property
    def teacher_taps(self) -> list[str]:
        return []

    @property
    def needs_logits(self) -> bool:
        return True

    def build(self, student: Mapping[str, torch.Size], teacher: Mapping[str, torch.Size]) -> None:
        classes = student["head"][-1]
        self.branches = nn.ModuleList(ExitBranch(student[tap], classes) for tap in self.taps)

    def forward(self, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
        """[N]. Raises UserError without hard labels."""
        target = hard_target(batch, self.name)
        exits = [branch(student.layers[tap]) for branch, tap in zip(self.branches, self.taps, strict=True)]
        return torch.stack([self.loss(logits, teacher.logits, target) for logits in exits]).sum(0)
