"""Deep self-attention distillation (MiniLM; Wang et al., NeurIPS 2020)."""

from torch import Tensor

from distillery.core.numerics import Reduction, at_least_float32, full_precision, reduce_rows, require_same_shape
from distillery.losses.signals import Attention
from distillery.losses.term import Contract
from distillery.losses.token_terms import AttentionTerm
from distillery.losses.tokens import among, divergence, mean_where


def minilm(
    student_scores: Tensor,
    teacher_scores: Tensor,
    student_value: Tensor,
    teacher_value: Tensor,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """KL of the attention distributions plus KL of the value relations, in nats (sections 3.1 and 3.2).

    A value relation is the softmax of value · value / √D, so the widths of the heads may differ.

    Args:
        student_scores: [B,H,L,L], before the softmax; -inf where a key may not be attended to.
        teacher_scores: the same shape.
        student_value: [B,H,L,D].
        teacher_value: [B,H,L,D'].
        mask: [B,L], non-zero where a token counts, both as a query and as a key; None: all.
        reduction: 'mean' over samples of the means over heads and tokens, or 'none' for each sample's: [B].

    Paper: MiniLM, https://arxiv.org/abs/2002.10957, by its definition; the authors' training code is not public.
    """
    require_same_shape(student_scores, teacher_scores)
    transfer = divergence(among(student_scores, mask), among(teacher_scores, mask))
    relation = divergence(among(_relation(student_value), mask), among(_relation(teacher_value), mask))
    samples = mean_where(transfer + relation, None if mask is None else mask[:, None], "none")
    return reduce_rows(samples, reduction)


def _relation(value: Tensor) -> Tensor:
    value = at_least_float32(value)
    with full_precision(value):
        return value @ value.mT * value.shape[-1] ** -0.5


class MiniLM(AttentionTerm, function=minilm):
    """`minilm` of pairs of attention layers, by default of the last ones."""

    auto = "last"
    contract = Contract(
        short_name="minilm",
        reduction="sum over keys, mean over heads and queries, then over samples; sum over pairs of layers",
        scale="0.1 to 4",
        needs="attention",
        properties=frozenset({"non_negative", "batch_permutation"}),
        paper="https://arxiv.org/abs/2002.10957",
        formula=r"\frac{1}{A_h |x|} \sum_{a,t} D_{KL}(A^T_{L,a,t} \Vert A^S_{M,a,t})"
        r" + D_{KL}(VR^T_{L,a,t} \Vert VR^S_{M,a,t}),\quad VR = \mathrm{softmax}(v v^\top / \sqrt{d_k})",
        values_of="the paper, sections 3.1 and 3.2",
    )

    def compare(self, student: Attention, teacher: Attention, mask: Tensor | None) -> Tensor:
        scores = student.masked_scores(), teacher.masked_scores()
        return self.loss(*scores, student.value, teacher.value, mask)
