"""Attention of the class token (AttnDistill; Wang, Yang and van de Weijer, BMVC 2022)."""

from torch import Tensor

from distillery.core.errors import UserError
from distillery.core.numerics import Reduction
from distillery.losses.patches import PatchTerm, among_patches, common_heads, grid_of
from distillery.losses.term import Contract, Pair
from distillery.losses.tokens import divergence, mean_where


def class_attention(student_scores: Tensor, teacher_scores: Tensor, reduction: Reduction = "mean") -> Tensor:
    """KL(teacher ‖ student), in nats, of the class token's attention to the patches, mean over heads.

    If the grids differ, the larger one is average-pooled. If the numbers of heads differ, the means over the heads are
    compared.

    Args:
        student_scores: [B,H,L,L], before the softmax; L is a square number plus one to five tokens before the
            patches, the first of which is the class token.
        teacher_scores: [B,H',L',L'].
        reduction: 'mean' over samples, or 'none': [B].

    Paper: Attention Distillation: self-supervised vision transformer students need more guidance,
    https://arxiv.org/abs/2210.00944. The authors' code also keeps the class token's attention to itself, combines the
    heads by the product of their probabilities (temperature 20), interpolates the teacher to the student's grid and
    clamps to [1e-5, 0.996]: weights are not interchangeable.
    """
    grid = min(grid_of(student_scores.shape[-1]), grid_of(teacher_scores.shape[-1]))
    student, teacher = common_heads(
        *(among_patches(scores[:, :, :1], grid) for scores in (student_scores, teacher_scores))
    )
    return mean_where(divergence(student, teacher), None, reduction)


class ClassAttention(PatchTerm, function=class_attention):
    """`class_attention` of pairs of attention layers, by default of the last ones."""

    auto = "last"
    contract = Contract(
        short_name="cls_att",
        reduction="sum over patches, mean over heads and samples, sum over pairs of layers",
        scale="0.01 to 2 a pair",
        needs="attention",
        properties=frozenset({"non_negative", "batch_permutation"}),
        paper="https://arxiv.org/abs/2210.00944",
        formula=r"\frac{1}{H} \sum_h D_{KL}(p^t_h \Vert p^s_h),"
        r"\quad p = \mathrm{softmax}_{\mathrm{patches}}(q_{\mathrm{cls}} k^\top / \sqrt{d})",
        values_of="this project's definition, after the paper",
    )

    def checked(self, pair: Pair) -> Pair:
        super().checked(pair)
        for role, shape in (("student", pair.student), ("teacher", pair.teacher)):
            if grid_of(shape[2]) ** 2 == shape[2]:
                raise UserError(
                    f"class_attention cannot compare {pair}: all {shape[2]} tokens of the {role} are patches, without "
                    "a class token. Choose networks with a class token, or vit_attention."
                )
        return pair
