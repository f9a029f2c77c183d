"""Cross-entropy of attention distributions (TextBrewer's `att_ce_loss`; Yang et al., ACL 2020)."""

from torch import Tensor

from distillery.core.numerics import Reduction, require_same_shape
from distillery.losses.signals import Attention
from distillery.losses.term import Contract
from distillery.losses.token_terms import AttentionTerm
from distillery.losses.tokens import among, mean_where


def attention_ce(
    student_attention: Tensor, teacher_attention: Tensor, mask: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """Mean cross-entropy, in nats, of the student's softmax over the keys to the teacher's.

    Args:
        student_attention: [B,H,L,L], scores before the softmax; -inf where a key may not be attended to.
        teacher_attention: the same shape.
        mask: [B,L], non-zero where a token counts; None: all. Other queries are left out of the mean, and other keys
            out of the sum, but not out of the softmax (use scores of -inf for that).
        reduction: 'mean' over all heads and queries of the batch, or 'none' for the mean of each sample's: [B].

    Source: TextBrewer, https://arxiv.org/abs/2002.12620; values equal its own. Without a mask, TextBrewer takes keys
    with scores below -0.001 for padding and leaves them out; here all keys count.
    """
    require_same_shape(student_attention, teacher_attention)
    student, teacher = among(student_attention).log_softmax(-1), among(teacher_attention).softmax(-1)
    terms = -teacher * student
    if mask is not None:
        terms = terms.masked_fill(~mask.bool()[:, None, None], 0.0)
    return mean_where(terms.sum(-1), None if mask is None else mask[:, None], reduction)


class AttentionCE(AttentionTerm, function=attention_ce):
    """`attention_ce` of the masked scores of pairs of attention layers."""

    auto = "all"
    contract = Contract(
        short_name="att_ce",
        form="cross_entropy",
        reduction="sum over keys, mean over heads and queries, then over samples; sum over pairs of layers",
        scale="at least the entropy of the teacher's attention, about log(L) a pair",
        needs="attention",
        properties=frozenset({"non_negative", "batch_permutation"}),
        paper="https://arxiv.org/abs/2002.12620",
        formula=r"-\sum_l \frac{1}{H L} \sum_{h,i,j} P^t_{lhij} \log P^s_{lhij},"
        r"\quad P = \mathrm{softmax}(q k^\top / \sqrt{d})",
        values_of="TextBrewer",
    )

    def compare(self, student: Attention, teacher: Attention, mask: Tensor | None) -> Tensor:
        return self.loss(student.masked_scores(mask), teacher.masked_scores(mask), mask)
