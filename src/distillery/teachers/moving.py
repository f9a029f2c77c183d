"""Teachers that are not frozen: an average of the student, and a network that is trained beside it."""

from collections.abc import Mapping
from copy import deepcopy
from typing import ClassVar

import torch
from torch import Tensor, nn

from distillery.config.names import EMA, PEER
from distillery.core.errors import UserError
from distillery.losses.signals import Signals
from distillery.losses.term import Term
from distillery.models.taps.network import Network
from distillery.teachers.frozen import Teacher


class EMATeacher(Teacher):
    """An exponential moving average of the student: mean ← d · mean + (1 - d) · student after every update.

    It starts as a copy, takes no gradient and, like a frozen teacher, stays in evaluation mode. Averaged are the
    parameters and the floating-point buffers (BatchNorm's statistics); other buffers are copied. Unlike a frozen
    teacher it is part of the Distiller: its state is in the checkpoint.

    Args:
        student: not yet tapped, nor compiled.
        name: see `Network`.
        decay: d after a warm-up, in the t-th update (from 0 on) min(d, (1 + t) / (10 + t)): a student that has only
            begun to learn is soon forgotten.

    Papers: Mean teachers are better role models, https://arxiv.org/abs/1703.01780; the warm-up is that of
    TensorFlow's ExponentialMovingAverage.
    """

    role = EMA
    updates: Tensor

    def __init__(self, student: Network, name: str, decay: float) -> None:
        source = f"average of the student, decay {decay:g}"
        super().__init__(deepcopy(student.net), deepcopy(student.adapter), name, source)
        self.decay = decay
        self.register_buffer("updates", torch.tensor(0))

    @torch.no_grad()
    def follow(self, student: Network) -> None:
        """Take in the student as it is after an update."""
        mine = [*self.net.parameters(), *self.net.buffers()]
        theirs = [*student.net.parameters(), *student.net.buffers()]
        averaged = [place for place, tensor in enumerate(mine) if tensor.is_floating_point()]
        means = [mine[place] for place in averaged]
        decay = ((1 + self.updates) / (10 + self.updates)).clamp_max(self.decay)  # on the device: the host waits not
        steps = torch._foreach_sub([theirs[place] for place in averaged], means)
        torch._foreach_mul_(steps, 1 - decay)
        torch._foreach_add_(means, steps)
        for place in set(range(len(mine))) - set(averaged):
            mine[place].copy_(theirs[place])
        self.updates += 1


class Peer(Network):
    """A network that is trained beside the student, each learning from the other (deep mutual learning).

    Part of the Distiller: in its optimizer and its checkpoint. `Objective` gives it losses of its own.

    Paper: Deep Mutual Learning, https://arxiv.org/abs/1706.00384.
    """

    role = PEER
    source: ClassVar[str] = "trained beside the student"

    def forward(self, batch: Mapping[str, Tensor], training: bool = False) -> Signals:
        """As the student's, in whatever mode it is in."""
        return super().forward(batch)


def refuse_role(name: str, term: Term, teacher: nn.Module, student: Network) -> None:
    """Refuse what a teacher of its role cannot teach.

    Raises:
        UserError: the student's logits are compared with themselves, or a peer with the student by their layers.
    """
    on_logits = term.contract.needs == "logits" and not term.student_taps
    if teacher is student and on_logits and term.needs_logits:
        raise UserError(
            f"loss.{name}: its teacher {term.teacher!r} is the student itself, and this loss compares their logits, "
            "which are the same: it is constant. Use a loss on layers, as loss/response=[deep_supervision], or "
            "another teacher, as model/teacher=ema."
        )
    same = [tap for tap, other in term.taps.items() if tap == other]
    if teacher is student and same and term.teacher_taps:
        raise UserError(
            f"loss.{name}.layers: its teacher {term.teacher!r} is the student itself, and {same[0]!r} would be "
            "compared with itself. Pair an earlier layer with a later one: {earlier: later}, or auto."
        )
    if isinstance(teacher, Peer) and not on_logits:
        raise UserError(
            f"loss.{name} compares layers, and its teacher {term.teacher!r} is a peer: the two learn from each "
            "other's logits only. Use a loss on logits, or a frozen teacher (model/teacher=run)."
        )
