"""How many classes of a teacher are enough: what is lost with the k likeliest and the mass of all others."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from rich.table import Table
from torch import Tensor

from distillery.core.numerics import kl, log_softmax
from distillery.losses.sparse import TopK, sparse_kl

ROWS = 1000  # on which k is chosen
CHUNK = 64
MOST = 512


class Loss(NamedTuple):
    """What is lost with k classes and a tail, in the mean over rows.

    Attributes:
        k: number of classes.
        kept: the teacher's mass in them.
        gap: KL(teacher ‖ student) of all classes minus that of k classes and the tail, in nats, at least 0.
        full: KL(teacher ‖ student) of all classes.
        gradient: of the student's logits: the root of Σ ‖with k - with all‖² over Σ ‖with all‖².
    """

    k: int
    kept: float
    gap: float
    full: float
    gradient: float


def candidates(classes: int) -> list[int]:
    """The powers of 2 up to half of the classes, at most `MOST`."""
    return [1 << power for power in range(MOST.bit_length()) if 1 << power <= max(1, classes // 2)]


def losses_by_k(teacher: Tensor, student: Tensor, ks: Sequence[int]) -> list[Loss]:
    """`Loss` of each k, for rows of both networks' logits [N,C]."""
    sums = torch.zeros(len(ks), 3, dtype=torch.float64)
    full = of_gradient = 0.0
    for theirs, ours in zip(teacher.split(CHUNK), student.split(CHUNK), strict=True):
        log_t = log_softmax(theirs.double(), 1.0)
        ranked = log_t.topk(max(ks)).indices
        own = ours.double().requires_grad_()
        log_s = log_softmax(own, 1.0)
        whole = kl(log_t, log_s)
        (exact,) = torch.autograd.grad(whole.sum(), own, retain_graph=True)
        full += whole.sum().item()
        of_gradient += exact.square().sum().item()
        for place, k in enumerate(ks):
            known = TopK.of(log_t, ranked[:, :k])
            rows = sparse_kl(TopK.of(log_s, ranked[:, :k]), known, "tail")
            (found,) = torch.autograd.grad(rows.sum(), own, retain_graph=True)
            sums[place] += torch.stack(
                [known.kept.exp().sum(), (whole - rows).detach().sum(), (found - exact).square().sum()]
            )
    number = len(teacher)
    return [
        Loss(k, kept / number, gap / number, full / number, (error / of_gradient) ** 0.5)
        for k, (kept, gap, error) in zip(ks, sums.tolist(), strict=True)
    ]


def smallest(losses: Sequence[Loss], tolerance: float) -> Loss:
    """The least k whose gradient differs by no more than `tolerance`, or the largest k."""
    return next((loss for loss in losses if loss.gradient <= tolerance), losses[-1])


def as_table(losses: Sequence[Loss], bytes_of: dict[int, int], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("k", "bytes a row", "kept mass", "KL gap", "of the KL", "gradient error"):
        table.add_column(heading, justify="right")
    for loss in losses:
        share = loss.gap / loss.full if loss.full else 0.0
        table.add_row(
            str(loss.k),
            f"{bytes_of[loss.k]:,}",
            f"{loss.kept:.4f}",
            f"{loss.gap:.4f}",
            f"{share:.1%}",
            f"{loss.gradient:.1%}",
        )
    return table
