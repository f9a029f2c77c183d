"""Squared error of hidden states (TinyBERT's and TextBrewer's hidden loss)."""

import torch.nn.functional as F
from torch import Tensor

from distillery.core.numerics import Reduction, comparable
from distillery.losses.term import Contract
from distillery.losses.token_terms import TokenTerm
from distillery.losses.tokens import mean_where


def hidden_mse(
    student_hidden: Tensor, teacher_hidden: Tensor, mask: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """Mean squared difference of the hidden states of the tokens that count.

    Args:
        student_hidden: [B,L,D], already projected to the teacher's width.
        teacher_hidden: the same shape.
        mask: [B,L], non-zero where a token counts; None: all.
        reduction: 'mean' over all elements of the batch, or 'none' for the mean of each sample's: [B].

    Paper: TinyBERT, https://arxiv.org/abs/1909.10351, equation 8, whose code includes padding. Values equal
    those of TextBrewer's `hid_mse_loss`.
    """
    gap = F.mse_loss(*comparable(student_hidden, teacher_hidden), reduction="none")
    return mean_where(gap, None if mask is None else mask.unsqueeze(-1), reduction)


class HiddenMSE(TokenTerm, function=hidden_mse):
    """`hidden_mse` on pairs of layers, summed, each student layer behind its own projector."""

    auto = "all"
    contract = Contract(
        short_name="hid_mse",
        reduction="mean over tokens and width, then over samples; sum over pairs of layers",
        scale="the variance of the teacher's hidden states, about 0.1 to 10 a pair",
        needs="tokens",
        properties=frozenset({"non_negative", "batch_permutation", "symmetric"}),
        paper="https://arxiv.org/abs/1909.10351",
        formula=r"\sum_l \mathrm{MSE}(H^S_l W_h, H^T_{g(l)})",
        values_of="TextBrewer",
    )
