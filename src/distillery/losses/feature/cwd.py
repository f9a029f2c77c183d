"""Channel-wise distillation (Shu et al., ICCV 2021)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.core.numerics import Reduction, comparable_maps, kl, log_softmax, reduce_rows
from distillery.losses.alignment import align, align_maps, as_map
from distillery.losses.projectors import aligned, check_projector, make_projector
from distillery.losses.signals import Signals
from distillery.losses.term import Contract, Layers, Term, require_positive


def cwd(
    student_features: Tensor,
    teacher_features: Tensor,
    temperature: float = 1.0,
    t_squared: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    """KL(teacher ‖ student) of each channel's softmax over the positions, in nats, times T² (equations 4 and 5).

    Args:
        student_features: [B,C,H,W]. Of maps that differ in size the larger is average-pooled.
        teacher_features: the same shape, apart from H and W.
        temperature: T; both softmaxes are of features / T.
        t_squared: multiply by T².
        reduction: 'mean' over channels and samples, or 'none' for the mean over each sample's channels: [B].

    Paper: Channel-wise Knowledge Distillation for Dense Prediction, https://arxiv.org/abs/2011.13256. Values as
    MMRazor's.
    """
    student, teacher = comparable_maps(student_features, teacher_features)
    log_s, log_t = (log_softmax(features.flatten(2), temperature) for features in (student, teacher))
    rows = kl(log_t, log_s).mean(1)
    return reduce_rows(rows * temperature**2 if t_squared else rows, reduction)


class CWD(Term):
    """`cwd` on pairs of layers, summed, each through a projector of its own."""

    auto = "last"
    contract = Contract(
        short_name="cwd",
        family="feature",
        form="divergence",
        per_sample=True,
        t_squared=True,
        reduction="sum over positions, mean over channels and samples, sum over pairs of layers",
        scale="0.01 to 1",
        needs="maps",
        properties=frozenset({"non_negative", "batch_permutation"}),
        paper="https://arxiv.org/abs/2011.13256",
        formula=r"\tfrac{T^2}{C} \sum_c \mathrm{KL}\left( \sigma_{hw}(F_{t,c} / T) \,\Vert\,"
        r" \sigma_{hw}(r(F_s)_c / T) \right)",
        values_of="MMRazor",
    )

    def __init__(
        self,
        weight: float = 1.0,
        teacher: str = "main",
        layers: Layers = "auto",
        projector: str | None = "auto",
        temperature: float = 1.0,
        t_squared: bool = True,
    ) -> None:
        check_projector(projector)
        super().__init__(weight, teacher, layers, projector)
        require_positive(temperature=temperature)
        self.temperature = temperature
        self.t_squared = t_squared

    def build(self, student: Mapping[str, torch.Size], teacher: Mapping[str, torch.Size]) -> None:
        pairs = self.pairs(student, teacher)
        for pair in pairs:
            if aligned(pair, align_maps)[0][2:] == (1, 1):
                raise UserError(
                    f"cwd cannot compare {pair}: one position alone always has probability 1. "
                    "Choose earlier layers, with a larger map."
                )
        self.projectors = nn.ModuleList(make_projector(self.projector, pair) for pair in pairs)

    def forward(self, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
        features = zip(self.projectors, self.features(student, teacher), strict=True)
        maps = [align(as_map(project(s)), as_map(t)) for project, (s, t) in features]
        return torch.stack([cwd(s, t, self.temperature, self.t_squared, "none") for s, t in maps]).sum(0)
