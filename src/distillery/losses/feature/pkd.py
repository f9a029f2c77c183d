"""Patient knowledge distillation (Sun et al., EMNLP 2019)."""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Size, Tensor

from distillery.core.errors import UserError
from distillery.core.numerics import Reduction, comparable, reduce_rows
from distillery.losses.alignment import align
from distillery.losses.layer_terms import ProjectedTerm
from distillery.losses.projectors import run
from distillery.losses.signals import Signals
from distillery.losses.term import Contract, Pair, Term


def pkd(student_hidden: Tensor, teacher_hidden: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Squared distance between the hidden states of the first token, normalised to unit norm (section 3.2).

    Args:
        student_hidden: [B,L,D], or the first token's states alone, [B,D]; already projected to the teacher's width.
        teacher_hidden: the same shape, except for L.
        reduction: 'mean' over samples, or 'none': [B].

    Paper: Patient Knowledge Distillation for BERT Model Compression, https://arxiv.org/abs/1908.09355. Values
    equal those of TextBrewer's `pkd_loss`. The authors' code averages over the width where the paper, and this
    function, sum: a weight for that code is D times as large.
    """
    student, teacher = comparable(_first(student_hidden), _first(teacher_hidden))
    gap = F.normalize(student, eps=1e-6) - F.normalize(teacher, eps=1e-6)  # the gradient of a shorter vector explodes
    return reduce_rows(gap.square().sum(-1), reduction)


def _first(hidden: Tensor) -> Tensor:
    return hidden[:, 0] if hidden.dim() == 3 else hidden


class PKD(ProjectedTerm, function=pkd):
    """`pkd` on pairs of layers, summed, behind projectors; by default all but the last ones."""

    auto = "inner"
    contract = Contract(
        short_name="pkd",
        reduction="sum over the width, mean over samples, sum over pairs of layers",
        scale="2 a pair for unrelated states, at most 4",
        needs="tokens",
        properties=frozenset({"non_negative", "batch_permutation", "symmetric"}),
        paper="https://arxiv.org/abs/1908.09355",
        formula=r"\sum_j \left\lVert \frac{h^s_{j}}{\lVert h^s_{j} \rVert_2}"
        r" - \frac{h^t_{I_{pt}(j)}}{\lVert h^t_{I_{pt}(j)} \rVert_2} \right\rVert_2^2",
        values_of="TextBrewer",
    )

    def checked(self, pair: Pair) -> Pair:
        """The shapes of the first tokens: the numbers of tokens may differ."""
        if not {len(pair.student), len(pair.teacher)} <= {2, 3}:
            raise UserError(
                f"pkd compares the first of the tokens [B,L,D], and cannot compare {pair}. Choose the blocks of "
                "transformers, or vectors [B,D]."
            )
        first = (Size((shape[0], shape[-1])) for shape in (pair.student, pair.teacher))
        return Pair(pair.student_tap, pair.teacher_tap, *first)

    def features(self, student: Signals, teacher: Signals) -> Iterator[tuple[Tensor, Tensor]]:
        for project, (s, t) in zip(self.projectors, Term.features(self, student, teacher), strict=True):
            yield align(run(project, _first(s)), _first(t))
