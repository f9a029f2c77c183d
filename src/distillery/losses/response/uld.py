"""Universal logit distillation: between vocabularies that differ (Boizard et al., 2024)."""

import torch.nn.functional as F
from torch import Tensor

from distillery.core.numerics import Reduction, log_softmax, reduce_rows
from distillery.losses.logit_term import LogitTerm
from distillery.losses.term import OF_CLASSES, Contract


def uld(student_logits: Tensor, teacher_logits: Tensor, reduction: Reduction = "mean") -> Tensor:
    """L1 distance between the sorted probabilities of both networks: how certain they are, but not of which class.

    It is the Wasserstein distance with equal costs between any two classes. The smaller vocabulary is padded with
    classes of probability 0.

    Args:
        student_logits: [N,C], or [B,L,V] for tokens.
        teacher_logits: [N,C'], or [B,L,V']; the same number of rows as the student's, any number of classes.
        reduction: 'mean' over rows, or 'none' for every row's value: [N] or [B,L].

    Paper: Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs,
    https://arxiv.org/abs/2402.12030. Values equal those of TRL (ULDLoss without its
    hybrid part).
    """
    if student_logits.shape[:-1] != teacher_logits.shape[:-1]:
        raise ValueError(
            f"student {list(student_logits.shape)} and teacher {list(teacher_logits.shape)} differ in their rows"
        )
    width = max(student_logits.shape[-1], teacher_logits.shape[-1])
    student, teacher = _sorted(student_logits, width), _sorted(teacher_logits, width)
    return reduce_rows((student - teacher).abs().sum(-1), reduction)


def _sorted(logits: Tensor, width: int) -> Tensor:
    """Probabilities in descending order, padded with zeros."""
    probabilities = log_softmax(logits, 1.0).exp().sort(dim=-1, descending=True).values
    return F.pad(probabilities, (0, width - logits.shape[-1]))


class ULD(LogitTerm, function=uld):
    """`uld` on the rows of logits that count."""

    contract = Contract(
        short_name="uld",
        scale="at most 2",
        properties=OF_CLASSES | {"symmetric"},
        paper="https://arxiv.org/abs/2402.12030",
        formula=r"\sum_i \big| p^{\downarrow}(z_t)_i - p^{\downarrow}(z_s)_i \big|",
        values_of="TRL",
        aligned_classes=False,
    )
