"""Knowledge distillation from k classes of the teacher (Anshumann et al., ACL 2025; TinyViT)."""

import math
from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from torch import Tensor

from distillery.core.errors import UserError
from distillery.core.kinds import conform
from distillery.core.numerics import Reduction, kl, log_softmax, reduce_rows, require_same_shape
from distillery.core.random import hash_pairs, uniforms
from distillery.losses.levels import Available, Level, SparseLogits
from distillery.losses.settings import Positive, PositiveInt
from distillery.losses.signals import Signals
from distillery.losses.sparse import Direction, TopK, check_direction, drawn, sampled_kl_rows, sparse_kl
from distillery.losses.steps import Steps
from distillery.losses.term import Contract, Term

Missing = Literal["tail", "truncate", "renormalise_teacher", "renormalise", "uniform", "sample"]
STREAM = -4000  # the `view` of these random numbers, which no other draw has


def topk_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    k: int = 5,
    temperature: float = 1.0,
    missing: Missing = "renormalise",
    t_squared: bool = False,
    draws: Tensor | None = None,
    direction: Direction = "forward",
    reduction: Reduction = "mean",
) -> Tensor:
    """KL(teacher ‖ student), or in reverse, from the teacher's k likeliest classes K. `missing` says what of the rest.

    - 'tail': all other classes together are one more class, whose mass is summed in log space. The student learns how
      much mass they have, but not which of them has it. A lower bound of the full divergence, equal to it if and only
      if the ratio of the two networks' probabilities is the same for all of them. 0 if the networks agree. Both ways.
    - 'renormalise': both softmaxes are over K only (Model-Optimizer's `TopKLogitsKLLoss`). Biased: the student learns
      nothing about the others, and may have any mass there. 0 if the networks agree. Both ways.
    - 'renormalise_teacher': the teacher's softmax is over K only, the student's over all classes. Biased: its minimum,
      0, has no mass outside of K, so the student becomes overconfident. Forward only.
    - 'truncate': the sum is over K only (verl's `forward_kl_topk`). Biased: forward, it has the gradient of
      'renormalise_teacher' times the teacher's mass in K. In reverse it falls as the student moves mass out of K, and
      is least at 1/e of the teacher's probabilities. It may be negative, and its gradient is not 0 at agreement.
    - 'uniform': the teacher keeps its k probabilities, and the rest of its mass is spread evenly over the other
      classes (TinyViT, https://arxiv.org/abs/2207.10666, whose loss adds the entropy of that target). Biased: it pulls
      the student's other classes towards uniform, also if the networks agree. Both ways.
    - 'sample': k classes are drawn from the teacher with replacement, and the mean of log p_t - log p_s over them is
      taken (Sparse Logit Sampling, https://arxiv.org/abs/2503.16870, with the teacher's own probabilities to draw
      from). Value and gradient are unbiased estimates of `kd` with all classes, unlike all others. They are noisy,
      and the value may be negative. Forward only.

    The forms that need no more than k classes and the tail are also in `distillery.losses.sparse`, without logits.

    Args:
        student_logits: [N,C].
        teacher_logits: [N,C].
        k: number of classes, at most C. With 'sample' it is the number of `draws` instead.
        temperature: T; all softmaxes are of logits / T.
        missing: one of the above.
        t_squared: multiply by T².
        draws: [N,k], uniform in [0, 1), at which 'sample' inverts the teacher's cumulative distribution.
        direction: 'forward', KL(teacher ‖ student), or 'reverse', KL(student ‖ teacher), of the teacher's k classes.
        reduction: 'mean' over rows, or 'none': [N].

    Raises:
        UserError: k is larger than the number of classes, or the form has no reverse.
        ValueError: 'sample' without draws.
    """
    require_same_shape(student_logits, teacher_logits)
    conform("missing", missing, Missing)
    check_direction(missing, direction)
    if missing != "sample" and k > student_logits.shape[-1]:
        raise UserError(f"topk_kd.k={k}: there are only {student_logits.shape[-1]} classes. Set a smaller k.")
    if missing == "sample":
        student, teacher = log_softmax(student_logits, temperature), log_softmax(teacher_logits, temperature)
        if draws is None:
            raise ValueError("missing='sample' needs draws [N,k], uniform in [0, 1)")
        classes = drawn(teacher, draws)
        rows = sampled_kl_rows(student.gather(-1, classes), teacher.gather(-1, classes))
    elif missing == "renormalise":  # of k logits only, without the softmax over all classes
        kept, classes = teacher_logits.topk(k)
        rows = _renormalised(student_logits.gather(-1, classes), kept, temperature, direction)
    else:
        teacher = log_softmax(teacher_logits, temperature)
        classes = teacher.topk(k).indices
        student = log_softmax(student_logits, temperature)
        rows = _divergence(student, classes, TopK.of(teacher, classes), missing, direction)
    return reduce_rows(rows * temperature**2 if t_squared else rows, reduction)


def _renormalised(student: Tensor, teacher: Tensor, temperature: float, direction: Direction) -> Tensor:
    """The divergence of the softmaxes over k classes alone, of logits or of log-probabilities [N,k]."""
    log_s, log_t = log_softmax(student, temperature), log_softmax(teacher, temperature)
    return kl(log_t, log_s) if direction == "forward" else kl(log_s, log_t)


def _divergence(log_s: Tensor, classes: Tensor, teacher: TopK, missing: Missing, direction: Direction) -> Tensor:
    """The forms that read the student's log-probabilities of all classes [N,C], and the teacher's mass of the rest."""
    if missing == "uniform":
        rest = teacher.tail.unsqueeze(-1) - math.log(max(log_s.shape[-1] - classes.shape[-1], 1))
        log_t = rest.expand_as(log_s).scatter(-1, classes, teacher.kept)
        return kl(log_t, log_s) if direction == "forward" else kl(log_s, log_t)
    assert missing != "renormalise"
    assert missing != "sample"
    return sparse_kl(TopK.of(log_s, classes), teacher, missing, direction)


def _of_sparse(
    student_logits: Tensor,
    teacher: SparseLogits,
    k: int,
    temperature: float,
    missing: Missing,
    t_squared: bool,
    direction: Direction,
) -> Tensor:
    """`topk_kd` of each row [N] of a teacher of which no more is known."""
    if missing == "sample":
        log_s = log_softmax(student_logits, 1.0).gather(-1, teacher.classes[..., :k])
        return sampled_kl_rows(log_s, teacher.log_p[..., :k])
    teacher = teacher.likeliest(k)
    if missing == "renormalise":
        rows = _renormalised(student_logits.gather(-1, teacher.classes), teacher.log_p, temperature, direction)
        return rows * temperature**2 if t_squared else rows
    assert teacher.log_tail is not None
    kept = TopK(teacher.log_p, teacher.log_tail)
    return _divergence(log_softmax(student_logits, 1.0), teacher.classes, kept, missing, direction)


class TopKKD(Term, function=topk_kd):
    """`topk_kd` on the rows of logits that count.

    With missing=sample the draws are a pure function of `seed`, the training batch, the sample and, for tokens, the
    position in the text. Every row has its own draws, the same in a resumed run and on any number of processes.

    A teacher that gives few classes is enough (`SparseLogits`): with missing=sample the k first that were drawn from
    it, otherwise its k likeliest ones, with the values of `topk_kd` from all logits.

    Raises:
        UserError: `missing` has no reverse form.
    """

    contract = Contract(
        short_name="topk",
        scale="0.1 to 3 with an untrained student; truncate and sample may be negative",
        paper="https://arxiv.org/abs/2503.16870",
        formula=r"\mathrm{KL}\big(p_T(z_t)|_K \,\|\, p_T(z_s)|_K\big), \quad K = \mathrm{top}_k(z_t)",
        values_of="Model-Optimizer; missing=uniform: TinyViT; missing=sample: Sparse Logit Sampling",
        bias="tail: a lower bound of the divergence. renormalise: blind to the student's mass outside of K. "
        "renormalise_teacher, truncate: overconfident, no mass outside of K at the minimum (truncate in reverse: ever "
        "more mass outside of K). uniform: towards uniform outside of K. sample: none",
        below_logits={"topk": "missing=tail", "sampled": "missing=sample"},
    )

    k: PositiveInt = 5
    temperature: Positive = 1.0
    missing: Missing = "renormalise"
    t_squared: bool = False
    seed: int = 0
    direction: Direction = "forward"
    steps: Steps = field(default_factory=Steps, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_direction(self.missing, self.direction)

    @property
    def least_level(self) -> Level:
        return "sampled" if self.missing == "sample" else "topk"

    @property
    def counts_batches(self) -> bool:
        return self.missing == "sample"

    def check_available(self, available: Available) -> None:
        """See `Term`: more classes than there are, or a temperature that cannot be applied to them."""
        if available.level == "logits":
            return
        if available.k is not None and self.k > available.k:
            raise UserError(f"topk_kd.k={self.k}: the teacher gives {available.k} classes. Set k to at most that.")
        if self.temperature != 1 and self.missing != "renormalise":
            raise UserError(
                f"topk_kd.temperature={self.temperature:g}: of the classes that the teacher does not name, only the "
                "mass at T = 1 is known, and not that at another temperature. Set temperature=1, or "
                "missing=renormalise, which does without."
            )

    def forward(self, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
        if teacher.sparse is not None and teacher.level != "logits":
            self.check_available(teacher.available)
            settings = self.k, self.temperature, self.missing, self.t_squared, self.direction
            rows, known = _of_sparse(student.logits, teacher.sparse, *settings), teacher.sparse.known
            return rows if known is None else rows.where(known, 0.0)
        draws = None
        if self.missing == "sample":
            rows = batch["index"] if "position" not in batch else hash_pairs(batch["index"], batch["position"])
            draws = uniforms(self.seed, self.steps.done, rows, STREAM, self.k)
            self.steps.done += self.training
        return self.loss(student.logits, teacher.logits, draws=draws)
