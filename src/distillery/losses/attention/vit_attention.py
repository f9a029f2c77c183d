"""Attention transfer between vision transformers (Li et al., NeurIPS 2024)."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from distillery.core.numerics import Reduction
from distillery.losses.patches import PatchTerm, among_patches, common_heads, grid_of, of_patches
from distillery.losses.term import Contract
from distillery.losses.tokens import divergence, mean_where

Distance = Literal["kl", "mse"]


def vit_attention(
    student_scores: Tensor, teacher_scores: Tensor, distance: Distance = "kl", reduction: Reduction = "mean"
) -> Tensor:
    """Distance between the attention maps from patches to patches, without class token and registers.

    Each patch's attention to the patches sums to 1. If the grids differ, the larger one is average-pooled over keys and
    queries. If the numbers of heads differ, the means over the heads are compared.

    Args:
        student_scores: [B,H,L,L], before the softmax; L is a square number plus up to five tokens before the patches.
        teacher_scores: [B,H',L',L'].
        distance: 'kl', KL(teacher ‖ student) in nats, mean over heads and patches; or 'mse' of the probabilities,
            mean over heads and pairs of patches.
        reduction: 'mean' over samples, or 'none': [B].

    Paper: On the Surprising Effectiveness of Attention Transfer for Vision Transformers,
    https://arxiv.org/abs/2411.09702, which compares networks of the same shape, class token included, by cross-entropy
    ('kl' has the same gradient).
    """
    grid = min(grid_of(student_scores.shape[-1]), grid_of(teacher_scores.shape[-1]))
    student, teacher = common_heads(
        *(of_patches(among_patches(scores, grid), grid) for scores in (student_scores, teacher_scores))
    )
    if distance == "kl":
        return mean_where(divergence(student, teacher), None, reduction)
    return mean_where(F.mse_loss(student.exp(), teacher.exp(), reduction="none"), None, reduction)


class ViTAttention(PatchTerm, function=vit_attention):
    """`vit_attention` of pairs of attention layers.

    Raises:
        UserError: an unknown distance.
    """

    auto = "all"
    contract = Contract(
        short_name="vit_att",
        reduction="sum over keys, mean over heads, patches and samples; sum over pairs of layers",
        scale="0.01 to 2 a pair",
        needs="attention",
        properties=frozenset({"non_negative", "batch_permutation"}),
        paper="https://arxiv.org/abs/2411.09702",
        formula=r"\sum_l \frac{1}{H N} \sum_{h,i} D_{KL}(P^t_{lhi} \Vert P^s_{lhi}),"
        r"\quad P = \mathrm{softmax}_{\mathrm{patches}}(q k^\top / \sqrt{d})",
        values_of="the paper, without the teacher's entropy and the class token",
    )

    distance: Distance = "kl"
