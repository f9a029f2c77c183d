"""Attention between the patches of images, brought to a common grid and a common number of heads, in log space."""

import math

import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.losses.alignment import as_map
from distillery.losses.signals import Attention
from distillery.losses.term import Pair
from distillery.losses.token_terms import AttentionTerm
from distillery.losses.tokens import among


class PatchTerm(AttentionTerm):
    """`function` of the scores of pairs of attention layers, whose tokens are patches of square images."""

    def checked(self, pair: Pair) -> Pair:
        for shape in (pair.student, pair.teacher):
            try:
                as_map(torch.empty(1, shape[2], 1, device="meta"))
            except ValueError as error:
                raise UserError(
                    f"{self.name} compares the attention between patches, and cannot compare {pair}: {error}"
                ) from None
        return pair

    def compare(self, student: Attention, teacher: Attention, mask: Tensor | None) -> Tensor:
        return self.loss(student.masked_scores(), teacher.masked_scores())


def grid_of(length: int) -> int:
    """The side of the square grid of patches in `length` tokens, without class token and registers."""
    return math.isqrt(length)


def among_patches(scores: Tensor, grid: int) -> Tensor:
    """Log-probabilities of the attention to the patches alone, pooled to a grid: [B,H,L,L] → [B,H,L,grid²].

    A pooled patch has the mean attention of the patches in it. The sum over all is then normalised to 1 again.
    """
    batch, heads, queries, _ = scores.shape
    maps = as_map(among(scores).flatten(0, 1).mT)  # the keys are the positions
    return _pooled(maps.flatten(2).log_softmax(-1).view_as(maps), grid).log_softmax(-1).view(batch, heads, queries, -1)


def of_patches(log_p: Tensor, grid: int) -> Tensor:
    """The queries of the patches, pooled to a grid: [B,H,L,K] → [B,H,grid²,K], each the mean of the patches in it."""
    batch, heads, _, keys = log_p.shape
    return _pooled(as_map(log_p.flatten(0, 1)), grid).mT.view(batch, heads, -1, keys)


def common_heads(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities [B,H,...] unchanged, or their means over the heads, [B,1,...], if the numbers differ."""
    if student.shape[1] == teacher.shape[1]:
        return student, teacher
    return _mean_over_heads(student), _mean_over_heads(teacher)


def _mean_over_heads(log_p: Tensor) -> Tensor:
    return log_p.logsumexp(1, keepdim=True) - math.log(log_p.shape[1])


def _pooled(maps: Tensor, grid: int) -> Tensor:
    """Log-probabilities [B,C,S,S] → logarithms of their adaptive averages, [B,C,grid²]."""
    return _pooled_rows(_pooled_rows(maps, grid).mT, grid).mT.flatten(2)


def _pooled_rows(maps: Tensor, size: int) -> Tensor:
    """Pools the last dimension. In log space, since a mean of probabilities may underflow to 0."""
    length = maps.shape[-1]
    if length == size:
        return maps
    place = torch.arange(size, device=maps.device)[:, None]
    starts, ends = place * length // size, ((place + 1) * length + size - 1) // size  # the windows of adaptive pooling
    width = max(-(-(i + 1) * length // size) - i * length // size for i in range(size))  # without asking the device
    index = starts + torch.arange(width, device=maps.device)
    beyond = index >= ends
    windows = maps[..., index.clamp_max(length - 1)].masked_fill(beyond, -torch.inf)
    return windows.logsumexp(-1) - (~beyond).sum(-1).to(maps.dtype).log()
