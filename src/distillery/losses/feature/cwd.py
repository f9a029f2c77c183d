"""Channel-wise distillation (Shu et al., ICCV 2021)."""

from torch import Tensor

from distillery.core.numerics import Reduction, comparable_maps, kl, log_softmax, reduce_rows
from distillery.losses.layer_terms import ProjectedTerm
from distillery.losses.settings import Positive
from distillery.losses.term import Contract


def cwd(
    student_features: Tensor,
    teacher_features: Tensor,
    temperature: float = 1.0,
    t_squared: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    """KL(teacher ‖ student) of each channel's softmax over the positions, in nats, times T² (equations 4 and 5).

    Args:
        student_features: [B,C,H,W]. If the sizes differ, the larger map is average-pooled.
        teacher_features: the same shape, except for H and W.
        temperature: T; both softmaxes are of features / T.
        t_squared: multiply by T².
        reduction: 'mean' over channels and samples, or 'none' for the mean over each sample's channels: [B].

    Paper: Channel-wise Knowledge Distillation for Dense Prediction, https://arxiv.org/abs/2011.13256. Values
    equal those of MMRazor.
    """
    student, teacher = comparable_maps(student_features, teacher_features)
    log_s, log_t = (log_softmax(features.flatten(2), temperature) for features in (student, teacher))
    rows = kl(log_t, log_s).mean(1)
    return reduce_rows(rows * temperature**2 if t_squared else rows, reduction)


class CWD(ProjectedTerm, function=cwd):
    """`cwd` on pairs of layers, summed, each student layer behind its own projector."""

    auto = "last"
    one_position = "a single position always has probability 1"
    contract = Contract(
        short_name="cwd",
        reduction="sum over positions, mean over channels and samples, sum over pairs of layers",
        scale="0.01 to 1",
        needs="maps",
        properties=frozenset({"non_negative", "batch_permutation"}),
        paper="https://arxiv.org/abs/2011.13256",
        formula=r"\tfrac{T^2}{C} \sum_c \mathrm{KL}\left( \sigma_{hw}(F_{t,c} / T) \,\Vert\,"
        r" \sigma_{hw}(r(F_s)_c / T) \right)",
        values_of="MMRazor",
    )

    temperature: Positive = 1.0
    t_squared: bool = True
