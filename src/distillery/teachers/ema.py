"""A teacher that is an average of the student."""

from copy import deepcopy

import torch
from torch import Tensor

from distillery.core.roles import EMA
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
        decay = ((1 + self.updates) / (10 + self.updates)).clamp_max(self.decay)  # on the device: no wait
        steps = torch._foreach_sub([theirs[place] for place in averaged], means)
        torch._foreach_mul_(steps, 1 - decay)
        torch._foreach_add_(means, steps)
        for place in set(range(len(mine))) - set(averaged):
            mine[place].copy_(theirs[place])
        self.updates += 1
