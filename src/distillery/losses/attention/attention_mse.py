"""Squared error of attention scores (TextBrewer's `att_mse_loss`; Yang et al., ACL 2020)."""

import torch.nn.functional as F
from torch import Tensor

from distillery.core.numerics import Reduction, comparable
from distillery.losses.signals import Attention
from distillery.losses.term import Contract
from distillery.losses.token_terms import AttentionTerm
from distillery.losses.tokens import mean_where


def attention_mse(
    student_attention: Tensor, teacher_attention: Tensor, mask: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """Mean squared difference of the attention scores of all pairs of tokens that count.

    Args:
        student_attention: [B,H,L,L], scores before the softmax.
        teacher_attention: the same shape.
        mask: [B,L], non-zero where a token counts, both as a query and as a key; None: all.
        reduction: 'mean' over all heads and pairs of the batch, or 'none' for the mean of each sample's: [B].

    Source: TextBrewer, https://arxiv.org/abs/2002.12620; values equal its own. Without a mask, TextBrewer takes scores
    below -0.001 for padding and sets them to 0; here all scores count as they are.
    """
    gap = F.mse_loss(*comparable(student_attention, teacher_attention), reduction="none")
    counts = None if mask is None else mask.bool()[:, None, :, None] & mask.bool()[:, None, None, :]
    return mean_where(gap, counts, reduction)


class AttentionMSE(AttentionTerm, function=attention_mse):
    """`attention_mse` of the scores of pairs of attention layers."""

    auto = "all"
    contract = Contract(
        short_name="att_mse",
        reduction="mean over heads and pairs of tokens, then over samples; sum over pairs of layers",
        scale="the variance of the scores, about 0.1 to 10 a pair",
        needs="attention",
        properties=frozenset({"non_negative", "batch_permutation", "symmetric"}),
        paper="https://arxiv.org/abs/2002.12620",
        formula=r"\sum_l \frac{1}{H L^2} \lVert A^s_l - A^t_l \rVert_2^2,\quad A = q k^\top / \sqrt{d}",
        values_of="TextBrewer",
    )

    def compare(self, student: Attention, teacher: Attention, mask: Tensor | None) -> Tensor:
        return self.loss(student.scores(), teacher.scores(), mask)
