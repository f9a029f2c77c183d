"""Normalised knowledge distillation (Yang et al., ICCV 2023)."""

from torch import Tensor

from distillery.core.numerics import Reduction, log_softmax_of_rest, log_softmaxes, one_hot, reduce_rows
from distillery.losses.logit_term import LogitTerm
from distillery.losses.settings import Positive
from distillery.losses.term import Contract


def nkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    gamma: float = 1.5,
    temperature: float = 1.0,
    t_squared: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy of the target class, weighted by the teacher's probability, plus γ times that of the other classes.

    -p_t(y) · log p_s(y) - γ T² Σ_{c≠y} p̂_t(c) · log p̂_s(c), in nats; p̂ sums to 1 over the classes other than y.

    Args:
        student_logits: [N,C], C ≥ 2.
        teacher_logits: [N,C].
        target: [N], class indices.
        gamma: weight of the other classes.
        temperature: T of the softmaxes among the other classes; those of the target have T = 1.
        t_squared: multiply the part of the other classes by T².
        reduction: 'mean' over rows, or 'none': [N].

    Paper: From Knowledge Distillation to Self-Knowledge Distillation, https://arxiv.org/abs/2303.13005. Values
    equal those of cls_KD. p̂ is a separate softmax, which stays exact for a target of probability near 1.
    """
    student, teacher = log_softmaxes(student_logits, teacher_logits, 1.0)
    is_target = one_hot(target, student_logits.shape[-1])
    of_target = -(teacher.exp() * student).masked_fill(~is_target, 0.0).sum(-1)
    student, teacher = (log_softmax_of_rest(x, is_target, temperature) for x in (student_logits, teacher_logits))
    of_rest = -(teacher.exp() * student).sum(-1)
    return reduce_rows(of_target + gamma * (of_rest * temperature**2 if t_squared else of_rest), reduction)


class NKD(LogitTerm, function=nkd):
    """`nkd` on the rows of logits that count. It needs class indices as labels."""

    contract = Contract(
        short_name="nkd",
        reads_labels=True,
        form="cross_entropy",
        scale="γ log C and more",
        paper="https://arxiv.org/abs/2303.13005",
        formula=r"-p_t^y \log p_s^y - \gamma T^2 \sum_{c \neq y} \hat p_t^c \log \hat p_s^c,"
        r" \quad \hat p = \mathrm{softmax}(z_{\setminus y} / T)",
        values_of="cls_KD",
    )

    gamma: float = 1.5
    temperature: Positive = 1.0
    t_squared: bool = True
