"""What the losses on tokens and on attention share: means over the tokens that count, and masked softmaxes."""

import torch
from torch import Tensor

from distillery.core.numerics import Reduction, at_least_float32, kl


def mean_where(values: Tensor, counts: Tensor | None, reduction: Reduction) -> Tensor:
    """Mean of the values that count, over the whole batch ('mean') or over each sample ('none': [B]).

    The mean of no values is 0: an all-zero mask must not turn a run into NaN.

    Args:
        values: [B, ...].
        counts: non-zero where a value counts, broadcastable to `values`; None: all values count.
        reduction: with 'mean' a sample's weight is the number of its values that count; with 'none' all samples are
            equal.
    """
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction={reduction!r}: choose 'mean' or 'none'")
    kept = torch.ones_like(values, dtype=torch.bool) if counts is None else counts.bool().expand_as(values)
    sums = values.masked_fill(~kept, 0.0).flatten(1).sum(1)
    sizes = kept.flatten(1).sum(1)
    return sums / sizes.clamp_min(1) if reduction == "none" else sums.sum() / sizes.sum().clamp_min(1)


def among(scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scores [B, H, L, L] in at least float32, with the lowest finite number at masked keys.

    Args:
        scores: -inf also marks a key that may not be attended to. It is replaced, since -inf - (-inf) is NaN.
        mask: [B, L], non-zero where a token counts; None: all tokens count.
    """
    scores = at_least_float32(scores)
    lowest = torch.finfo(scores.dtype).min
    scores = scores.clamp_min(lowest)
    return scores if mask is None else scores.masked_fill(~mask.bool()[:, None, None], lowest)


def divergence(student_scores: Tensor, teacher_scores: Tensor) -> Tensor:
    """KL(teacher ‖ student) of the softmaxes over the last dimension, in nats: [...]."""
    return kl(teacher_scores.log_softmax(-1), student_scores.log_softmax(-1))
