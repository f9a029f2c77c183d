"""Centered kernel alignment: how alike two representations of the same samples are, whatever their dimensions."""

import torch
from torch import Tensor


def cka(first: Tensor, second: Tensor) -> float:
    """Linear CKA of two sets of features of the same rows, [N, D] and [N, E], from unbiased estimates.

    It is 1 where the features are equal up to rotation, scale and shift, and 0 on average where they are independent.
    (The plain estimate of independent features approaches 1 when there are more dimensions than rows.) It may be
    slightly negative, and is NaN for fewer than 4 rows or constant features.

    Source: Kornblith et al. 2019, https://arxiv.org/abs/1905.00414, section 3, with the unbiased estimates of Nguyen et
    al. 2021, https://arxiv.org/abs/2010.15327.
    """
    ours, theirs = (gram(features)[None] for features in (first, second))
    return normalised(unbiased_hsic(ours, theirs), unbiased_hsic(ours, ours), unbiased_hsic(theirs, theirs)).item()


def normalised(cross: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """CKA [A,B] from the independence criteria of A with B kernels, [A,B], and of each with itself, [A,A] and [B,B]."""
    return cross / (first.diagonal()[:, None] * second.diagonal()[None]).sqrt()


def unbiased_hsic(first: Tensor, second: Tensor) -> Tensor:
    """The Hilbert-Schmidt independence criterion of all pairs of kernels: [A,N,N] and [B,N,N] → [A,B].

    The unbiased estimate of Song et al. 2012, https://jmlr.org/papers/v13/song12a.html: without the diagonals,
    (tr KL + ΣK · ΣL ÷ ((n - 1)(n - 2)) - 2 · ΣKL ÷ (n - 2)) ÷ (n(n - 3)). NaN for fewer than 4 samples.
    """
    n = first.shape[-1]
    if n < 4:
        return first.new_full((len(first), len(second)), torch.nan)
    ours, theirs = (kernels - torch.diag_embed(kernels.diagonal(dim1=1, dim2=2)) for kernels in (first, second))
    our_rows, their_rows = ours.sum(-1), theirs.sum(-1)
    trace = ours.flatten(1) @ theirs.flatten(1).T
    sums = our_rows.sum(-1)[:, None] * their_rows.sum(-1)[None]
    return (trace + sums / ((n - 1) * (n - 2)) - 2 * (our_rows @ their_rows.T) / (n - 2)) / (n * (n - 3))


def gram(features: Tensor) -> Tensor:
    """The linear kernel [N,N] of features [N,...]; they are centred, which changes no result but rounds less."""
    flat = features.flatten(1).double()
    flat = flat - flat.mean(0)
    return flat @ flat.T
