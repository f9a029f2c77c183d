"""Attention-based distillation of TinyBERT (Jiao et al., Findings of EMNLP 2020)."""

import torch.nn.functional as F
from torch import Tensor

from distillery.core.numerics import Reduction, at_least_float32, require_same_shape
from distillery.losses.signals import Attention
from distillery.losses.term import Contract
from distillery.losses.token_terms import AttentionTerm
from distillery.losses.tokens import mean_where

PADDING = -1e2  # lower scores are taken for padding


def tinybert_attention(student_scores: Tensor, teacher_scores: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Mean squared difference of attention scores, where scores of at most -100 are set to 0 (equation 7).

    Args:
        student_scores: [B,H,L,L], before the softmax, masked: -inf, or BERT's -10000, at padding.
        teacher_scores: the same shape.
        reduction: 'mean' over all heads and positions, or 'none' for the mean of each sample's: [B].

    Paper: TinyBERT, https://arxiv.org/abs/1909.10351. Values equal those of the authors' `task_distill.py`. In that
    code padded keys agree, at 0, and count in the mean, so the loss is smaller the more padding there is; the paper
    does not mention padding. `attention_mse` is the same loss over the tokens that count.
    """
    require_same_shape(student_scores, teacher_scores)
    gap = F.mse_loss(_without_padding(student_scores), _without_padding(teacher_scores), reduction="none")
    return mean_where(gap, None, reduction)


def _without_padding(scores: Tensor) -> Tensor:
    return at_least_float32(scores).masked_fill(scores <= PADDING, 0.0)


class TinyBERTAttention(AttentionTerm, function=tinybert_attention):
    """`tinybert_attention` of the masked scores of pairs of attention layers; those of padded queries are 0 too."""

    auto = "all"
    contract = Contract(
        short_name="tinybert_att",
        reduction="mean over heads and pairs of positions, padding among them; sum over pairs of layers",
        scale="the variance of the scores, about 0.1 to 10 a pair",
        needs="attention",
        properties=frozenset({"non_negative", "batch_permutation", "symmetric"}),
        paper="https://arxiv.org/abs/1909.10351",
        formula=r"\sum_l \frac{1}{h} \sum_{i=1}^h \mathrm{MSE}(A^S_{l,i}, A^T_{g(l),i})",
        values_of="TinyBERT's code",
    )

    def compare(self, student: Attention, teacher: Attention, mask: Tensor | None) -> Tensor:
        ours, theirs = student.masked_scores(mask), teacher.masked_scores(mask)
        if mask is not None:  # the attention of padded queries means nothing, and a cached teacher does not store it
            padding = ~mask.bool()[:, None, :, None]
            ours, theirs = (scores.masked_fill(padding, PADDING) for scores in (ours, theirs))
        return self.loss(ours, theirs)
