"""Adaptive Kullback-Leibler divergence (Wu et al., COLING 2025)."""

from typing import Literal

import torch
from torch import Tensor

from distillery.core.kinds import conform
from distillery.core.numerics import Reduction, kl, log_softmaxes, reduce_rows
from distillery.losses.logit_term import LogitTerm
from distillery.losses.settings import Fraction, Positive
from distillery.losses.term import Contract

Variant = Literal["llm_kd_akl", "dskd"]


def akl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mu: float = 0.5,
    variant: Variant = "llm_kd_akl",
    temperature: float = 1.0,
    t_squared: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """h / (h + t) · KL(teacher ‖ student) + t / (h + t) · KL(student ‖ teacher), in nats.

    h and t are the sums of |p_t - p_s| over the head (the teacher's likely classes) and over the tail (the others). No
    gradient flows through these weights. If student and teacher agree, both are 0, and so is the loss.

    Args:
        student_logits: [N,C], or [B,L,V] for tokens.
        teacher_logits: the same shape.
        mu: μ, the probability at which the head ends, at least 0 and below 1.
        variant: 'llm_kd_akl' (the authors' code): classes are sorted from the likeliest on, and the head holds the
            likeliest and those whose cumulative probability is at most μ. 'dskd' (DSKD's code): they are sorted from
            the least likely on, and the tail holds those whose cumulative probability is below μ. So at μ = 0.5 the
            class that crosses the line is in the tail of the first and in the head of the second, and a larger μ
            lengthens the head of the first and the tail of the second.
        temperature: T; both softmaxes are of logits / T.
        t_squared: multiply by T².
        reduction: 'mean' over rows, or 'none' for every row's value: [N] or [B,L].

    Paper: Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large Language Models,
    https://arxiv.org/abs/2404.02657. Values equal those of LLM_KD_AKL, which has no T, or of DSKD, without T². Both
    return NaN at agreement.
    """
    conform("variant", variant, Variant)
    student, teacher = log_softmaxes(student_logits, teacher_logits, temperature)
    gap = (teacher.exp() - student.exp()).detach().abs()
    in_order, order = teacher.detach().sort(dim=-1, descending=variant == "llm_kd_akl")
    gap, cumulative = gap.gather(-1, order), in_order.exp().cumsum(-1)
    if variant == "llm_kd_akl":
        is_head = cumulative <= mu
        is_head[..., 0] = True
    else:
        is_head = cumulative >= mu
    head, tail = gap.masked_fill(~is_head, 0.0).sum(-1), gap.masked_fill(is_head, 0.0).sum(-1)
    total = (head + tail).clamp_min(torch.finfo(gap.dtype).tiny)
    rows = head / total * kl(teacher, student) + tail / total * kl(student, teacher)
    return reduce_rows(rows * temperature**2 if t_squared else rows, reduction)


class AKL(LogitTerm, function=akl):
    """`akl` on the rows of logits that count.

    Raises:
        UserError: the variant is unknown, or `mu` is not at least 0 and below 1.
    """

    contract = Contract(
        short_name="akl",
        scale="between those of kd and reverse_kl: 1 to 10 with an untrained student",
        paper="https://arxiv.org/abs/2404.02657",
        formula=r"\tfrac{h}{h + t} \, \mathrm{KL}(p_t \,\|\, p_s) + \tfrac{t}{h + t} \, \mathrm{KL}(p_s \,\|\, p_t),"
        r" \quad h, t = \sum_{c \in \mathrm{head}, \mathrm{tail}} |p_t^c - p_s^c|",
        values_of="LLM_KD_AKL, or DSKD",
    )

    mu: Fraction = 0.5
    variant: Variant = "llm_kd_akl"
    temperature: Positive = 1.0
    t_squared: bool = False
