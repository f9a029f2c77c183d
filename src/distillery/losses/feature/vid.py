"""Variational information distillation (Ahn et al., CVPR 2019)."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.core.numerics import Reduction, at_least_float32, comparable_maps, pool_to_common_size, reduce_rows
from distillery.losses.alignment import align, channels
from distillery.losses.layer_terms import ProjectedTerm
from distillery.losses.projectors import aligned, make_projector, run
from distillery.losses.settings import Positive
from distillery.losses.signals import Signals
from distillery.losses.term import Contract, Pair, Term

REGRESSOR = "regressor"


def vid(
    student_features: Tensor,
    teacher_features: Tensor,
    log_scale: Tensor | None = None,
    init_pred_var: float = 5.0,
    eps: float = 1e-5,
    reduction: Reduction = "mean",
) -> Tensor:
    """Negative log-likelihood, without its constant, of the teacher's features under a Gaussian around the student's.

    ½ · ((student - teacher)² / σ² + log σ²), averaged (equations 5 and 6), with σ² = log(1 + exp(log_scale)) + eps
    for each channel. It may be negative, and at agreement it falls with σ².

    Args:
        student_features: the mean that a regressor predicts from the student: [B,C,H,W], [B,L,C] or [B,C]. If the sizes
            of maps differ, the larger one is average-pooled.
        teacher_features: the same shape, except for H and W.
        log_scale: [C], trained with the student; None: the value for which every channel has σ² = `init_pred_var`.
        init_pred_var: σ² if there is no `log_scale`; greater than `eps`.
        eps: the least σ².
        reduction: 'mean' over all elements, or 'none' for the mean of each sample's: [B].

    Paper: Variational Information Distillation for Knowledge Transfer, https://arxiv.org/abs/1904.05835. Values
    equal those of RepDistiller, by the authors.
    """
    student, teacher = comparable_maps(student_features, teacher_features)
    if log_scale is None:
        log_scale = student.new_full((channels(student.shape),), _initial_log_scale(init_pred_var, eps))
    variance = F.softplus(at_least_float32(log_scale)) + eps
    variance = variance.view(-1, 1, 1) if student.dim() == 4 else variance
    rows = 0.5 * ((student - teacher).square() / variance + variance.log())
    return reduce_rows(rows.flatten(1).mean(1), reduction)


def _initial_log_scale(init_pred_var: float, eps: float) -> float:
    """The `log_scale` for which `vid` has σ² = `init_pred_var`."""
    return math.log(math.expm1(init_pred_var - eps))


class VID(ProjectedTerm, function=vid):
    """`vid` on pairs of layers, summed, each with its regressor and one σ² for each of the teacher's channels.

    The regressor is RepDistiller's ('regressor': three 1×1 layers of the teacher's width, without biases, with ReLU in
    between), or a projector of another kind. Maps are pooled to the smaller size first.
    """

    auto = "all"
    own_projectors = frozenset({REGRESSOR})
    at_build = frozenset({"init_pred_var", "eps"})
    contract = Contract(
        short_name="vid",
        form="learned",
        reduction="mean over elements, sum over pairs of layers",
        scale="about 0.8 a pair at first (half the log of the initial variance); negative where the student fits well",
        needs="features",
        properties=frozenset({"batch_permutation", "symmetric"}),
        paper="https://arxiv.org/abs/1904.05835",
        formula=r"\tfrac{1}{2n} \sum_i \frac{(\mu(F_s) - F_t)_i^2}{\sigma_{c(i)}^2} + \log \sigma_{c(i)}^2",
        values_of="RepDistiller",
    )

    projector: str | None = REGRESSOR
    init_pred_var: Positive = 5.0
    eps: Positive = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_pred_var <= self.eps:
            raise UserError(
                f"init_pred_var={self.init_pred_var}: it must be greater than eps={self.eps}, the least variance."
            )

    def build(self, student: Mapping[str, torch.Size], teacher: Mapping[str, torch.Size]) -> None:
        super().build(student, teacher)
        start = _initial_log_scale(self.init_pred_var, self.eps)
        widths = map(self.width, self.pairs(student, teacher))
        self.log_scales = nn.ParameterList(torch.full((width,), start) for width in widths)

    def make_projector(self, pair: Pair) -> nn.Module:
        return _regressor(pair) if self.projector == REGRESSOR else make_projector(self.projector, pair)

    def forward(self, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
        rows = []
        parts = zip(self.projectors, self.log_scales, Term.features(self, student, teacher), strict=True)
        for project, log_scale, (s, t) in parts:
            s, t = pool_to_common_size(s, t)
            rows.append(self.loss(*align(run(project, s), t), log_scale))
        return torch.stack(rows).sum(0)


def _regressor(pair: Pair) -> nn.Module:
    aligned(pair)
    on_maps = len(pair.student) == 4
    width_in, width = channels(pair.student), channels(pair.teacher)
    layers: list[nn.Module] = []
    for inputs in (width_in, width, width):
        layer = nn.Conv2d(inputs, width, 1, bias=False) if on_maps else nn.Linear(inputs, width, bias=False)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
