"""How many classes of a teacher are enough: what is lost with the k likeliest and the mass of all others."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from rich.table import Table
from torch import Tensor

from distillery.core.numerics import kl, log_softmax

ROWS = 1000  # on which k is chosen
CHUNK = 64
MOST = 512
TINY = 1e-300


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
    """`Loss` of each k, for rows of both networks' logits [N,C].

    With t, s the probabilities, and T, S the mass of all but the teacher's k likeliest classes: there the gradient of
    the tail bucket is s - s · T/S, where that of all classes is s - t. Elsewhere they are the same. The divergences
    differ by Σ t · log(t/s) - T · log(T/S), over these classes.
    """
    found = torch.zeros(len(ks), 3, dtype=torch.float64)
    full = of_gradient = 0.0
    last = torch.tensor(ks) - 1
    for theirs, ours in zip(teacher.split(CHUNK), student.split(CHUNK), strict=True):
        log_t, log_s = (log_softmax(logits.double(), 1.0) for logits in (theirs, ours))
        t, s = log_t.exp(), log_s.exp()
        whole = kl(log_t, log_s)
        full += whole.sum().item()
        of_gradient += (s - t).square().sum().item()
        classes = log_t.topk(max(ks)).indices

        def rest(values: Tensor, classes: Tensor = classes) -> Tensor:
            """The sum over all but the k likeliest classes, for each k: [n, len(ks)]."""
            kept = values.gather(-1, classes).cumsum(-1)[:, last]
            return (values.sum(-1, keepdim=True) - kept).clamp_min(0)

        mass_t, mass_s = rest(t), rest(s).clamp_min(TINY)
        ratio = mass_t / mass_s
        bucket = kept_kl(t, log_t, log_s, classes)[:, last] + mass_t * ratio.clamp_min(TINY).log()
        gap = whole[:, None] - bucket
        error = rest(t * t) - 2 * ratio * rest(t * s) + ratio * ratio * rest(s * s)
        found += torch.stack([(1 - mass_t).sum(0), gap.sum(0), error.clamp_min(0).sum(0)], 1)
    number = len(teacher)
    return [
        Loss(k, kept / number, max(gap, 0.0) / number, full / number, (error / of_gradient) ** 0.5)
        for k, (kept, gap, error) in zip(ks, found.tolist(), strict=True)
    ]


def kept_kl(t: Tensor, log_t: Tensor, log_s: Tensor, classes: Tensor) -> Tensor:
    """Σ t · log(t/s) over the first, the first two, … of the classes [n,k], for each of these sets."""
    return (t * (log_t - log_s)).gather(-1, classes).cumsum(-1)


def smallest(losses: Sequence[Loss], tolerance: float) -> Loss:
    """The least k whose gradient differs by no more than `tolerance`, or the largest k."""
    return next((loss for loss in losses if loss.gradient <= tolerance), losses[-1])


def as_table(losses: Sequence[Loss], bytes_of: dict[int, int], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("k", "bytes per row", "mass kept", "KL lost", "% of the KL", "gradient error"):
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
