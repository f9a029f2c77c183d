"""One-for-all distillation between different architectures (OFA-KD; Hao et al., NeurIPS 2023)."""

from collections.abc import Mapping
from dataclasses import field

import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.core.numerics import Reduction, log_softmaxes, one_hot, reduce_rows
from distillery.losses.projectors import ExitBranch
from distillery.losses.settings import Positive
from distillery.losses.signals import Signals
from distillery.losses.term import Contract, Layers, Pair, Term, hard_target


def ofa(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    eps: float = 1.0,
    temperature: float = 1.0,
    t_squared: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy to the teacher's probabilities, in nats, with the target class enhanced.

    -[(1 + p_t(y))^ε - 1] · log p_s(y) - Σ_{c≠y} p_t(c)^ε · log p_s(c); ε = 1 is the plain cross-entropy.

    Args:
        student_logits: [N,C].
        teacher_logits: [N,C].
        target: [N], class indices.
        eps: ε, the modulating parameter; above 1 it gives the target more weight, and the other classes less.
        temperature: T; both softmaxes are of logits / T.
        t_squared: multiply by T².
        reduction: 'mean' over rows, or 'none': [N].

    Paper: One-for-All: Bridge the Gap Between Heterogeneous Architectures, https://arxiv.org/abs/2310.19444. Values
    equal those of OFAKD, which does not multiply by T².
    """
    student, teacher = log_softmaxes(student_logits, teacher_logits, temperature)
    is_target = one_hot(target, student_logits.shape[-1])
    enhanced = torch.expm1(eps * teacher.exp().log1p())
    labels = torch.where(is_target, enhanced, (eps * teacher).exp())
    rows = -(labels * student).sum(-1)
    return reduce_rows(rows * temperature**2 if t_squared else rows, reduction)


class OFA(Term, function=ofa):
    """`ofa` on the rows of logits that count, and at exits from the student's stages; needs class indices.

    Each student layer of `layers` gets an exit branch: its features are averaged over positions, and a linear layer
    maps them to the classes. The losses of all exits and of the student's own logits are summed. OFA-KD has larger
    branches: separable convolutions down to the size of the last stage, or transformer blocks.
    """

    auto = "all"
    teacher_tap = "head"
    contract = Contract(
        short_name="ofa",
        reads_labels=True,
        form="cross_entropy",
        reduction="sum over classes and over exits, mean over rows",
        scale="log C an exit with an untrained student, at ε = 1",
        paper="https://arxiv.org/abs/2310.19444",
        formula=r"-\big[(1 + p_t^y)^\varepsilon - 1\big] \log p_s^y"
        r" - \sum_{c \neq y} (p_t^c)^\varepsilon \log p_s^c",
        values_of="OFAKD",
    )

    layers: Layers | None = None
    eps: Positive = 1.0
    temperature: Positive = 1.0
    t_squared: bool = False
    branches: nn.ModuleList = field(default_factory=nn.ModuleList, init=False)

    def build(self, student: Mapping[str, torch.Size], teacher: Mapping[str, torch.Size]) -> None:
        self.branches = nn.ModuleList(map(_branch, self.pairs(student, teacher)))

    def forward(self, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
        """[N]. Raises UserError without hard labels."""
        target = hard_target(batch, self.name)
        exits = [(student.logits, teacher.logits)]
        for branch, (features, logits) in zip(self.branches, self.features(student, teacher), strict=True):
            exits.append((branch(features), logits))
        return torch.stack([self.loss(ours, theirs, target) for ours, theirs in exits]).sum(0)


def _branch(pair: Pair) -> ExitBranch:
    if len(pair.student) not in (2, 3, 4) or len(pair.teacher) != 2:
        raise UserError(
            "ofa compares an exit from the student's maps [B,C,H,W], tokens [B,L,D] or vectors [B,D] with the "
            f"teacher's logits [B,C], and cannot compare {pair}. Use `layers: {{student layer: head}}`, or auto."
        )
    return ExitBranch(pair.student, pair.teacher[1])
