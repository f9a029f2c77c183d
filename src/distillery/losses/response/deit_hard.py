"""Hard distillation through a distillation token (DeiT; Touvron et al., ICML 2021)."""

import torch.nn.functional as F
from torch import Tensor

from distillery.core.numerics import Reduction, at_least_float32, reduce_rows, require_same_shape
from distillery.losses.heads import HeadTerm
from distillery.losses.term import Contract


def deit_hard(student_logits: Tensor, teacher_logits: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Cross-entropy of the student's distillation head with the teacher's predicted class, in nats.

    Args:
        student_logits: [N,C], of the distillation head.
        teacher_logits: [N,C].
        reduction: 'mean' over rows, or 'none': [N].

    Paper: Training Data-Efficient Image Transformers & Distillation through Attention,
    https://arxiv.org/abs/2012.12877, the second half of equation 3. Values equal those of DeiT's code.
    """
    require_same_shape(student_logits, teacher_logits)
    rows = F.cross_entropy(at_least_float32(student_logits), teacher_logits.argmax(-1), reduction="none")
    return reduce_rows(rows, reduction)


class DeiTHard(HeadTerm, function=deit_hard):
    """`deit_hard` on pairs of heads, summed; by default the student's distillation head and the teacher's head."""

    contract = Contract(
        short_name="deit_hard",
        form="cross_entropy",
        reduction="mean over rows, sum over pairs of heads",
        scale="log C with an untrained student",
        needs="vectors",
        properties=frozenset({"non_negative", "batch_permutation"}),
        paper="https://arxiv.org/abs/2012.12877",
        formula=r"-\log p(z_{\mathrm{dist}})_{\hat y}, \quad \hat y = \operatorname{argmax}_k z_{t,k}",
        values_of="DeiT",
    )
