"""Multi-head self-attention relation distillation (MiniLMv2; Wang et al., Findings of ACL 2021)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from distillery.core.errors import UserError, did_you_mean
from distillery.core.numerics import Reduction, at_least_float32, full_precision, reduce_rows
from distillery.losses.settings import PositiveInt
from distillery.losses.signals import Attention
from distillery.losses.term import Contract, Pair
from distillery.losses.token_terms import AttentionTerm, require_same_length
from distillery.losses.tokens import among, divergence, mean_where

RELATIONS = ("qq", "kk", "vv", "qk", "kq", "qv", "vq", "kv", "vk")
PARTS = {"q": 0, "k": 1, "v": 2}


def minilmv2(
    student: tuple[Tensor, Tensor, Tensor],
    teacher: tuple[Tensor, Tensor, Tensor],
    relation_heads: int,
    relations: Sequence[str] = ("qq", "kk", "vv"),
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """KL(teacher ‖ student), in nats, of the relations among queries, keys and values, summed (section 3.1).

    The heads are concatenated, and the whole width is split into relation heads, so the networks may differ in heads
    and widths. The relation 'qk' is the softmax over j of q_i · k_j / √d of each relation head.

    Args:
        student: queries, keys and values, [B,H,L,D] each.
        teacher: the same, [B,H',L,D'].
        relation_heads: their number; H·D and H'·D' must be multiples of it.
        relations: those to compare, each two of the letters q, k and v.
        mask: [B,L], non-zero where a token counts, both as a query and as a key; None: all.
        reduction: 'mean' over samples of the means over heads and tokens, or 'none' for each sample's: [B].

    Paper: MiniLMv2, https://arxiv.org/abs/2012.15828, by its definition; the authors' training code is not
    public.
    """
    ours, theirs = (_split(vectors, relation_heads) for vectors in (student, teacher))
    rows = torch.stack(
        [divergence(among(_relation(ours, name), mask), among(_relation(theirs, name), mask)) for name in relations]
    ).sum(0)
    samples = mean_where(rows, None if mask is None else mask[:, None], "none")
    return reduce_rows(samples, reduction)


def _split(vectors: tuple[Tensor, Tensor, Tensor], heads: int) -> list[Tensor]:
    """[B,H,L,D] each → [B,heads,L,H·D/heads]."""
    joined = (at_least_float32(part).transpose(1, 2).flatten(2) for part in vectors)
    return [part.unflatten(2, (heads, -1)).transpose(1, 2) for part in joined]


def _relation(vectors: Sequence[Tensor], name: str) -> Tensor:
    first, second = (vectors[PARTS[letter]] for letter in name)
    with full_precision(first):
        return first @ second.mT * first.shape[-1] ** -0.5


class MiniLMv2(AttentionTerm):
    """`minilmv2` of pairs of attention layers, by default of the last ones.

    Args:
        relation_heads: their number; None: the number of heads of the student's layer.
        relations: those to compare, each two of the letters q, k and v.

    Raises:
        UserError: an unknown relation, one named twice, or none.
    """

    auto = "last"
    contract = Contract(
        short_name="minilmv2",
        reduction="sum over keys and relations, mean over relation heads and queries, then over samples; "
        "sum over pairs of layers",
        scale="0.1 to 4",
        needs="attention",
        properties=frozenset({"non_negative", "batch_permutation"}),
        paper="https://arxiv.org/abs/2012.15828",
        formula=r"\sum_{i \in \{q,k,v\}} \frac{1}{A_r |x|} \sum_{a,t} D_{KL}(R^T_{ii,l,a,t} \Vert R^S_{ii,m,a,t}),"
        r"\quad R_{ij} = \mathrm{softmax}(A_i A_j^\top / \sqrt{d_r})",
        values_of="the paper, section 3.1",
    )

    relation_heads: PositiveInt | None = None
    relations: Sequence[str] = ("qq", "kk", "vv")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.relations:
            if name not in RELATIONS:
                raise UserError(f"relations: unknown relation {name!r}.{did_you_mean(name, RELATIONS)}")
        if not self.relations or len(set(self.relations)) < len(self.relations):
            raise UserError(f"relations={list(self.relations)}: name one or more of {', '.join(RELATIONS)}, each once.")
        self.relations = tuple(self.relations)

    def checked(self, pair: Pair) -> Pair:
        require_same_length(self.name, pair)
        heads = self.relation_heads or pair.student[1]
        for role, shape in (("student", pair.student), ("teacher", pair.teacher)):
            if shape[1] * shape[3] % heads:
                raise UserError(
                    f"minilmv2 cannot split the {role}'s width {shape[1] * shape[3]} into {heads} relation heads "
                    f"({pair}). Set relation_heads to a divisor of both widths."
                )
        return pair

    def compare(self, student: Attention, teacher: Attention, mask: Tensor | None) -> Tensor:
        ours, theirs = ((operands.query, operands.key, operands.value) for operands in (student, teacher))
        heads = self.relation_heads or student.query.shape[1]
        return minilmv2(ours, theirs, heads, self.relations, mask, reduction="none")
