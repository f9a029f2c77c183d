"""Divergence from one sampled token of each row (Schulman, 2020; on-policy distillation)."""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from distillery.core.errors import UserError
from distillery.core.kinds import Says, conform
from distillery.core.numerics import Reduction, log_softmax, log_softmaxes, reduce_rows
from distillery.losses import on_policy
from distillery.losses.levels import Available, Level
from distillery.losses.settings import Fraction, Positive
from distillery.losses.signals import Signals
from distillery.losses.term import OF_CLASSES, Contract, Term, hard_target

Estimator = Literal["k2", "k3", "policy_gradient"]


def sampled_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    estimator: Estimator = "k2",
    temperature: float = 1.0,
    clip: float = 0.0,
    discount: float = 0.0,
    log_sampled: Tensor | None = None,
    text: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """What one sampled token says of the divergence of student s and teacher t, in nats. r = t(y) / s(y).

    An estimate's value and its gradient are about different things, if y is drawn from the student:

    | estimator | value | mean of the value | its gradient minimises |
    | --- | --- | --- | --- |
    | `k1` | -log r | KL(s ‖ t) | nothing: its mean is 0. Refused. |
    | `k2` | ½ log² r | no KL | KL(s ‖ t), reverse |
    | `k3` | r - 1 - log r | KL(s ‖ t) | KL(t ‖ s), forward |
    | `policy_gradient` | -ρ · A | KL(s ‖ t), while s = s_old | KL(s ‖ t), reverse |

    A = log t(y) - log s_old(y) is constant, and ρ = s(y) / s_old(y), where s_old is the student that drew y. With a
    discount γ, A is the sum of those of the token and the ones after it in its text, each by γ to the power of its
    distance (MiniLLM): with γ = 1 the gradient is that of the reverse KL of whole texts. For tokens of given texts,
    which the student has not drawn, none of this holds: use `kd`, `reverse_kl` or `topk_kd`.

    Args:
        student_logits: [N,C].
        teacher_logits: [N,C].
        target: [N], the sampled tokens.
        estimator: 'k2', 'k3' or 'policy_gradient'.
        temperature: T; both softmaxes are of logits / T. It should be that of sampling.
        clip: ε of PPO's bounds on ρ, for 'policy_gradient'; 0: no bounds.
        discount: γ of 'policy_gradient', from 0 to 1; 0: each token answers for itself alone.
        log_sampled: [N], log s_old(y). None: the student has not changed since, so ρ = 1. NaN: it has not drawn this
            token, whose value is 0.
        text: [N], a number for the text of each row, for `discount`; those of a text stand in order. None: all rows are
            of one.
        reduction: 'mean' over rows, or 'none': [N].

    Raises:
        UserError: `estimator` is k1.
        ValueError: `log_sampled` has not one number for each row.

    Paper: Approximating KL Divergence, http://joschu.net/blog/kl-approx.html.
    """
    _refuse_k1(estimator)
    conform("estimator", estimator, Estimator)
    student, teacher = (
        log_p.gather(-1, target.unsqueeze(-1)).squeeze(-1)
        for log_p in log_softmaxes(student_logits, teacher_logits, temperature)
    )
    return reduce_rows(_estimates(student, teacher, estimator, clip, discount, log_sampled, text), reduction)


def _estimates(
    student: Tensor,
    teacher: Tensor,
    estimator: Estimator,
    clip: float,
    discount: float,
    log_sampled: Tensor | None,
    text: Tensor | None,
) -> Tensor:
    """The estimate of each row [N], from both networks' log-probabilities of its token."""
    log_sampled = student.detach() if log_sampled is None else log_sampled
    if log_sampled.shape != student.shape:
        raise ValueError(f"log_sampled {list(log_sampled.shape)} must have one number for each of {len(student)} rows")
    drawn = ~log_sampled.isnan()
    if estimator != "policy_gradient":
        return {"k2": on_policy.k2, "k3": on_policy.k3}[estimator](student, teacher).where(drawn, 0.0)
    log_sampled = log_sampled.where(drawn, student.detach())
    worth = on_policy.advantage(teacher, log_sampled).where(drawn, 0.0)
    if discount:
        worth = on_policy.returns_of_rows(worth, discount, torch.zeros_like(drawn) if text is None else text)
    return on_policy.policy_gradient(student, log_sampled, worth, clip or None)


def _refuse_k1(estimator: str) -> None:
    if estimator == "k1":
        raise UserError(
            "estimator=k1: the gradient of log s - log t has mean 0 over the student's own tokens, so that it teaches "
            "nothing. Use policy_gradient, which has the gradient meant, or k2."
        )


class SampledKL(Term, function=sampled_kl):
    """`sampled_kl` on the rows of logits that count, of which `target` is the token that was sampled.

    A batch may hold `sampled_log_prob` [N], the log-probability with which the student drew each of them; with
    `rollouts` the loss is 0 on the data's own texts. The teacher's log-probability of the targets is enough
    (`SparseLogits`).

    Raises:
        UserError: `estimator` is k1.
    """

    contract = Contract(
        short_name="sampled",
        scale="1 to 50 with an untrained student; policy_gradient may be negative",
        properties=OF_CLASSES | {"symmetric"},
        paper="http://joschu.net/blog/kl-approx.html",
        formula=r"\tfrac{1}{2} \log^2 \frac{p(z_t)_y}{p(z_s)_y}, \quad y \sim p(z_s)",
        values_of="Schulman's k2 and k3; policy_gradient: tinker-cookbook",
        bias="with tokens that the student has not drawn: every estimator",
        reads_labels=True,
        reads_samples=True,
        below_logits={"token": ""},
    )

    at_build = frozenset({"discount"})  # which decides whether rows may be computed apart

    estimator: Estimator = "k2"
    temperature: Positive = 1.0
    clip: Fraction = 0.0
    discount: Annotated[float, Ge(0), Le(1), Says("from 0 to 1")] = 0.0

    def __post_init__(self) -> None:
        _refuse_k1(self.estimator)
        super().__post_init__()

    @property
    def compares_rows(self) -> bool:
        """With a discount, those of a text."""
        return self.discount > 0

    @property
    def least_level(self) -> Level:
        return "token"

    def check_available(self, available: Available) -> None:
        """See `Term`: a temperature other than that of the teacher's log-probabilities."""
        if available.level != "logits" and self.temperature != 1:
            raise UserError(
                f"sampled_kl.temperature={self.temperature:g}: only the teacher's log-probability of the target at "
                "T = 1 is known. Set temperature=1."
            )

    def forward(self, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
        """[N]. Raises UserError if the batch has no class indices."""
        sampled, log_sampled = hard_target(batch, self.name), batch.get(on_policy.SAMPLED)
        text = on_policy.text_of_rows(batch["index"], batch["position"]) if "position" in batch else None
        if teacher.level == "logits" or teacher.sparse is None:
            return self.loss(student.logits, teacher.logits, sampled, log_sampled=log_sampled, text=text)
        self.check_available(teacher.available)
        assert teacher.sparse.log_p_target is not None
        ours = log_softmax(student.logits, 1.0).gather(-1, sampled.unsqueeze(-1)).squeeze(-1)
        settings = self.estimator, self.clip, self.discount
        return _estimates(ours, teacher.sparse.log_p_target, *settings, log_sampled, text)
