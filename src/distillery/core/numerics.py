"""The arithmetic all losses share: precision, softmax, agreement of shapes, and the mean over rows."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Reduction = Literal["mean", "none"]


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or in its own type where that is wider: 300² overflows in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Within: products on `x`'s device keep their precision under autocast too."""
    return nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)


def log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature) over the last dimension, in at least float32."""
    return F.log_softmax(at_least_float32(logits) / temperature, dim=-1)


def log_softmaxes(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """`log_softmax` of both networks' logits; ValueError unless they have one shape."""
    require_same_shape(student, teacher)
    return log_softmax(student, temperature), log_softmax(teacher, temperature)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) over the last dimension, in nats: log-probabilities [..., C] → [...]."""
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def log_mix(log_p: Tensor, log_q: Tensor, weight: float) -> Tensor:
    """log(weight · p + (1 - weight) · q), for a weight from 0 to 1."""
    of_p, of_q = (math.log(part) if part > 0 else -math.inf for part in (weight, 1 - weight))
    return torch.logaddexp(log_p + of_p, log_q + of_q)


def one_hot(target: Tensor, classes: int) -> Tensor:
    """Whether a class is the row's target: indices [N] → bool [N, classes]."""
    return target.unsqueeze(-1) == torch.arange(classes, device=target.device)


def log_softmax_of_rest(logits: Tensor, is_target: Tensor, temperature: float) -> Tensor:
    """`log_softmax` among the classes other than the target [N,C]; 0 at the target itself.

    A softmax of its own, not log p - log(1 - p of the target): both are large where the target is certain, and would
    cancel.
    """
    return log_softmax(logits.masked_fill(is_target, -torch.inf), temperature).masked_fill(is_target, 0.0)


def unit_rows(x: Tensor) -> Tensor:
    """`x` over its L2 norm along the last dimension; what is shorter than 1e-12 has no direction: 0, no gradient.

    (`F.normalize` multiplies the gradient of such a row by 1e12.)
    """
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.masked_fill(norm < 1e-12, torch.inf)


def require_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError unless the shapes agree; broadcasting would give a plausible, wrong loss."""
    if student.shape != teacher.shape:
        raise ValueError(f"student {list(student.shape)} and teacher {list(teacher.shape)} differ in shape")


def pool_to_common_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool maps [B,C,H,W] to the smaller of both heights and widths; other tensors pass unchanged."""
    if student.dim() != 4 or teacher.dim() != 4 or student.shape[2:] == teacher.shape[2:]:
        return student, teacher
    size = common_size(student.shape, teacher.shape)
    return F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)


def comparable(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in at least float32; ValueError unless they have one shape."""
    require_same_shape(student, teacher)
    return at_least_float32(student), at_least_float32(teacher)


def comparable_maps(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """`comparable`, after the larger of two maps is pooled."""
    return comparable(*pool_to_common_size(at_least_float32(student), at_least_float32(teacher)))


def common_size(student: torch.Size, teacher: torch.Size) -> tuple[int, int]:
    """The (height, width) at which two maps [B,C,H,W] are compared."""
    return min(student[2], teacher[2]), min(student[3], teacher[3])


def reduce_rows(rows: Tensor, reduction: Reduction, mask: Tensor | None = None) -> Tensor:
    """Mean over the rows that `mask` keeps, or every row's value ('none', masked rows are 0).

    The mean of no rows is 0: an empty batch or an all-zero mask must not turn a run into NaN.
    """
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction={reduction!r}: choose 'mean' or 'none'")
    if mask is not None:
        require_same_shape(rows, mask)
        rows = rows.masked_fill(~mask.bool(), 0.0)
    if reduction == "none":
        return rows
    if mask is None:
        return rows.sum() / max(rows.numel(), 1)
    return rows.sum() / mask.bool().sum().clamp_min(1)
