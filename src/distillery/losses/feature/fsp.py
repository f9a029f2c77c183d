"""Flow of solution procedure (FSP): the relation between two layers of a network (Yim et al., CVPR 2017)."""

import itertools
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.core.numerics import (
    Reduction,
    at_least_float32,
    full_precision,
    pool_to_common_size,
    reduce_rows,
    require_same_shape,
)
from distillery.losses.alignment import as_map, channels
from distillery.losses.layer_terms import ProjectedTerm
from distillery.losses.projectors import make_projector, run
from distillery.losses.signals import Signals
from distillery.losses.term import Contract, Pair, Term


def fsp(
    student_first: Tensor,
    student_second: Tensor,
    teacher_first: Tensor,
    teacher_second: Tensor,
    reduction: Reduction = "mean",
) -> Tensor:
    """Mean squared difference of the FSP matrices: the products of each channel of one layer with each of another.

    Entry (i,j) is the mean over positions of channel i of the first map times channel j of the second (equations 1
    and 2). If the two maps of a network differ in size, the larger one is average-pooled.

    Args:
        student_first: [B,C,H,W].
        student_second: [B,D,H',W'].
        teacher_first: [B,C,.,.], of any size.
        teacher_second: [B,D,.,.], of any size.
        reduction: 'mean' over entries and samples, or 'none' for the mean of each sample's: [B].

    Paper: A Gift from Knowledge Distillation, CVPR 2017. Values equal those of RepDistiller; torchdistill
    max-pools and takes norms in place of squares, which makes the loss up to 3500 times as large.
    """
    student, teacher = _fsp_matrix(student_first, student_second), _fsp_matrix(teacher_first, teacher_second)
    require_same_shape(student, teacher)
    return reduce_rows(F.mse_loss(student, teacher, reduction="none").flatten(1).mean(1), reduction)


def _fsp_matrix(first: Tensor, second: Tensor) -> Tensor:
    """[B,C,D]."""
    first, second = pool_to_common_size(at_least_float32(first), at_least_float32(second))
    with full_precision(first):
        return first.flatten(2) @ second.flatten(2).mT / first[0, 0].numel()


class FSP(ProjectedTerm, function=fsp):
    """`fsp` on each layer with the next of `layers`, summed. Only layers of different widths have a projector."""

    auto = "all"
    contract = Contract(
        short_name="fsp",
        reduction="mean over the entries of a matrix, sum over consecutive layers",
        scale="the fourth power of the features, about 0.0005 to 1",
        needs="maps",
        properties=frozenset({"non_negative", "batch_permutation", "symmetric"}),
        paper="https://openaccess.thecvf.com/content_cvpr_2017/html/Yim_A_Gift_From_CVPR_2017_paper.html",
        formula=r"\tfrac{1}{CD} \lVert G_s - G_t \rVert_F^2,"
        r" \quad G = \tfrac{1}{HW} \sum_{h,w} F^{(1)}_{hw} {F^{(2)}_{hw}}^\top",
        values_of="RepDistiller",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.projector == "none":
            raise UserError("projector=none: fsp would average channels that it multiplies. Set projector=auto.")

    def build(self, student: Mapping[str, torch.Size], teacher: Mapping[str, torch.Size]) -> None:
        pairs = self.pairs(student, teacher)
        if len(pairs) < 2:
            raise UserError(f"fsp compares each layer with the next and needs at least two; `layers` has {pairs[0]}.")
        super().build(student, teacher)

    def make_projector(self, pair: Pair) -> nn.Module:
        return make_projector(self.projector if channels(pair.student) != channels(pair.teacher) else None, pair)

    def forward(self, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
        features = zip(self.projectors, Term.features(self, student, teacher), strict=True)
        maps = [(as_map(run(project, s)), as_map(t)) for project, (s, t) in features]
        return torch.stack([self.loss(s1, s2, t1, t2) for (s1, t1), (s2, t2) in itertools.pairwise(maps)]).sum(0)
