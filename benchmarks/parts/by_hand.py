"""kd in a plain loop."""

from collections.abc import Callable

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillery.data.tokens import IGNORED

TEMPERATURE, TASK, KD = 4.0, 0.1, 0.9
Inputs = Tensor | dict[str, Tensor]  # of a network: images, or token ids with what belongs to them
Step = Callable[[Inputs, Tensor], None]  # what a network takes, and the labels


def rows_of(net: nn.Module, x: Inputs, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and label of each row; a language model's rows are the tokens that have one before them."""
    found = net(**x) if isinstance(x, dict) else net(x)
    logits = found if isinstance(found, Tensor) else found.logits
    if target.dim() == 1:
        return logits, target
    counts = target[:, 1:] != IGNORED
    return logits[:, :-1][counts], target[:, 1:][counts]


def kd_loss(student: nn.Module, teacher: nn.Module, x: Inputs, target: Tensor) -> Tensor:
    """Two forwards, cross-entropy and KL."""
    with torch.no_grad():
        soft = F.log_softmax(rows_of(teacher, x, target)[0] / TEMPERATURE, 1)
    logits, labels = rows_of(student, x, target)
    kd = F.kl_div(F.log_softmax(logits / TEMPERATURE, 1), soft, reduction="batchmean", log_target=True)
    return TASK * F.cross_entropy(logits, labels) + KD * TEMPERATURE**2 * kd


def by_hand(student: nn.Module, teacher: nn.Module) -> Step:
    """The losses, backward, SGD."""
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)

    def step(x: Inputs, target: Tensor) -> None:
        loss = kd_loss(student, teacher, x, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def alone(student: nn.Module, teacher: nn.Module) -> Step:
    """The student without a teacher: what no way of reading the teacher's signals can fall below."""
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)

    def step(x: Inputs, target: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(*rows_of(student, x, target)).backward()
        optimizer.step()

    return step


class ByHand(L.LightningModule):
    """`by_hand` as a LightningModule."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self._teacher = student, [teacher]

    def training_step(self, batch: tuple[Inputs, Tensor], _: int) -> Tensor:
        return kd_loss(self.student, self._teacher[0], *batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.student.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
