"""Cosine of hidden states (DistilBERT; Sanh et al., 2019)."""

import torch.nn.functional as F
from torch import Tensor

from distillery.core.numerics import Reduction, comparable
from distillery.losses.term import Contract
from distillery.losses.token_terms import TokenTerm
from distillery.losses.tokens import mean_where


def hidden_cosine(
    student_hidden: Tensor, teacher_hidden: Tensor, mask: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """Mean of 1 - cosine between the hidden states of the tokens that count.

    Args:
        student_hidden: [B,L,D], already projected to the teacher's width.
        teacher_hidden: the same shape.
        mask: [B,L], non-zero where a token counts; None: all.
        reduction: 'mean' over all tokens of the batch, or 'none' for the mean of each sample's: [B].

    Paper: DistilBERT, https://arxiv.org/abs/1910.01108, section 3. Values equal those of TextBrewer's `cos_loss`.
    """
    # Half the squared distance of unit vectors is 1 - cosine, and exactly 0 at agreement. A vector shorter than
    # 1e-6 has no direction: the default of 1e-12 would give it a gradient of 1e12.
    student, teacher = (F.normalize(x, dim=-1, eps=1e-6) for x in comparable(student_hidden, teacher_hidden))
    return mean_where(0.5 * (student - teacher).square().sum(-1), mask, reduction)


class HiddenCosine(TokenTerm, function=hidden_cosine):
    """`hidden_cosine` on pairs of layers, summed, behind projectors; by default the last ones."""

    auto = "last"
    contract = Contract(
        short_name="hid_cos",
        reduction="mean over tokens, then over samples; sum over pairs of layers",
        scale="1 a pair for unrelated states, at most 2",
        needs="tokens",
        properties=frozenset({"non_negative", "batch_permutation", "symmetric"}),
        paper="https://arxiv.org/abs/1910.01108",
        formula=r"\sum_l \frac{1}{L} \sum_i 1 - \cos(h^s_{l,i}, h^t_{l,i})",
        values_of="TextBrewer",
    )
