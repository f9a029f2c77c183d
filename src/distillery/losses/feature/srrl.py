"""Softmax regression representation learning (Yang et al., ICLR 2021)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.core.numerics import Reduction, at_least_float32, comparable, full_precision, reduce_rows
from distillery.losses.layer_terms import EMBEDDING
from distillery.losses.projectors import make_projector, run
from distillery.losses.signals import Signals
from distillery.losses.term import Contract, Layers, Pair, Term

WEIGHT = "head:weight"
CONNECTOR = "connector"


def srrl(
    student_features: Tensor,
    teacher_features: Tensor,
    head_weight: Tensor,
    alpha: float = 1.0,
    beta: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """α · mean squared error of the features + β · that of the logits of the teacher's classifier.

    Args:
        student_features: [B,D], pooled and already of the teacher's width.
        teacher_features: [B,D], the input of the teacher's classifier.
        head_weight: [K,D], of the teacher's classifier. Its bias is not needed, since it cancels in the difference.
        alpha: weight of the features (the paper's feature matching).
        beta: weight of the logits (the paper's softmax regression loss, in the form with the L2 distance).
        reduction: 'mean' over elements, or 'none' for the mean of each sample's: [B].

    Paper: Knowledge Distillation via Softmax Regression Representation Learning,
    https://openreview.net/forum?id=ZzwDy_wiWv. Values equal those of SimKD's implementation.
    """
    student, teacher = comparable(student_features, teacher_features)
    gap = student - teacher
    with full_precision(gap):
        logits = gap @ at_least_float32(head_weight).mT
    return reduce_rows(alpha * gap.square().mean(1) + beta * logits.square().mean(1), reduction)


class SRRL(Term, function=srrl):
    """`srrl` on the pooled features, the student's through a projector.

    The authors' projector, 'connector', is a linear layer, BatchNorm and ReLU. The ReLU fits teacher features that also
    come after a ReLU.
    """

    default_layers = EMBEDDING
    own_teacher_taps = (WEIGHT,)
    own_projectors = frozenset({CONNECTOR})
    contract = Contract(
        short_name="srrl",
        reduction="mean over features and over classes, mean over samples",
        scale="the variance of the teacher's features, plus that of its logits: 1 to 50",
        needs="vectors",
        properties=frozenset({"non_negative", "batch_permutation"}),
        paper="https://openreview.net/forum?id=ZzwDy_wiWv",
        formula=r"\tfrac{\alpha}{D} \lVert r(f_s) - f_t \rVert_2^2"
        r" + \tfrac{\beta}{K} \lVert W_t (r(f_s) - f_t) \rVert_2^2",
        values_of="SimKD",
    )

    layers: Layers | None = None
    projector: str | None = CONNECTOR
    alpha: float = 1.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.projector == "none":
            raise UserError(
                "projector=none: the teacher's classifier needs features of its own width. Set projector=connector."
            )

    def build(self, student: Mapping[str, torch.Size], teacher: Mapping[str, torch.Size]) -> None:
        pairs = self.pairs(student, teacher)
        if len(pairs) != 1 or len(pairs[0].student) != 2 or pairs[0].teacher[1:] != teacher[WEIGHT][1:]:
            raise UserError(
                f"srrl compares the inputs of the classifiers, one vector per sample, and the teacher's classifier "
                f"takes {teacher[WEIGHT][1]} features. It cannot compare {', '.join(map(str, pairs))}. Set layers=null."
            )
        self.connect = self._connector(pairs[0])

    def _connector(self, pair: Pair) -> nn.Module:
        if self.projector != CONNECTOR:
            return make_projector(self.projector, pair)
        width = pair.teacher[1]
        return nn.Sequential(nn.Linear(pair.student[1], width, bias=False), nn.BatchNorm1d(width), nn.ReLU())

    def forward(self, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
        ((s, t),) = self.features(student, teacher)
        return self.loss(run(self.connect, s), t, teacher.layers[WEIGHT])
