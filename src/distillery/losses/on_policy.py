"""Arithmetic of learning from tokens that the student itself has drawn: estimators of KL, advantages and returns.

Everything here reads log-probabilities of the drawn tokens, [N] or [B,L], in float32. Those of a served teacher, which
scores a prompt, begin with a null: its entry i is of token i given the tokens before it.
"""

import math

import torch
from torch import Tensor, nn

SAMPLED = "sampled_log_prob"  # of a batch: log s of the student that drew each target, NaN of one that it did not draw
LONGEST = 20.0  # nats: a ratio of 5e8, beyond which it is not trusted


def k1(log_student: Tensor, log_teacher: Tensor) -> Tensor:
    """-log r, r = t/s. Its mean over the student's tokens is KL(student ‖ teacher). For logs only: see `sampled_kl`."""
    return log_student - log_teacher


def k2(log_student: Tensor, log_teacher: Tensor) -> Tensor:
    """½ log² r. Over the student's tokens its gradient, but not its value, is that of KL(student ‖ teacher)."""
    return (log_teacher - log_student).square() / 2


def k3(log_student: Tensor, log_teacher: Tensor) -> Tensor:
    """r - 1 - log r. Over the student's tokens its mean is KL(student ‖ teacher), its gradient KL(teacher ‖ student)'s.

    Above log r = 20, r is continued as a straight line, so that it stays finite and its gradient keeps its sign.
    """
    log_r = log_teacher - log_student
    far = log_r > LONGEST
    line = math.exp(LONGEST) * (1 + log_r - LONGEST) - 1
    return torch.where(far, line, log_r.masked_fill(far, 0.0).expm1()) - log_r


def advantage(log_teacher: Tensor, log_sampled: Tensor) -> Tensor:
    """log t - log s of the student that drew the token, detached: what the token is worth by itself (discount 0).

    Not detached, it would add a term to the gradient, of mean 0 only while no sample is stale, and of variance always.
    """
    return (log_teacher - log_sampled).detach()


def returns(rewards: Tensor, discount: float, mask: Tensor | None = None, normalise: bool = False) -> Tensor:
    """R_t = Σ_{u ≥ t} γ^(u - t) · r_u: the discount counts from each token, not from the start of the text. [B,L].

    Args:
        rewards: [B,L]; of `advantage` for the divergence of sequences.
        discount: γ from 0 to 1. 0: each token answers for itself. 1: the gradient of the sequences' divergence.
        mask: [B,L], non-zero where the student drew the token. Others have return 0, and no distance.
        normalise: divide by Σ_{u ≥ t} γ^(u - t), as MiniLLM does against its preference for short texts.

    Paper: MiniLLM, https://arxiv.org/abs/2306.08543, section 2.2.
    """
    drawn = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask.bool()
    rewards = rewards.masked_fill(~drawn, 0.0)
    total = weight = torch.zeros_like(rewards[:, 0])
    found = torch.zeros_like(rewards)
    for t in reversed(range(rewards.shape[1])):
        kept = torch.where(drawn[:, t], discount, 1.0)
        total, weight = rewards[:, t] + kept * total, drawn[:, t] + kept * weight
        found[:, t] = total / weight.clamp_min(1.0) if normalise else total
    return found.masked_fill(~drawn, 0.0)


def returns_of_rows(rewards: Tensor, discount: float, text: Tensor) -> Tensor:
    """`returns` of rows of several texts [N]; the rows of a text, which `text` numbers, follow each other in order."""
    if not len(rewards):
        return rewards
    _, row, counts = text.unique_consecutive(return_inverse=True, return_counts=True)
    place = torch.arange(len(rewards), device=rewards.device) - (counts.cumsum(0) - counts)[row]
    table = rewards.new_zeros(len(counts), int(counts.max()))
    table[row, place] = rewards
    return returns(table, discount)[row, place]


def text_of_rows(index: Tensor, position: Tensor) -> Tensor:
    """A number for the text of each row [N]: a new one begins where `index` changes or `position` does not grow."""
    begins = (index.diff() != 0) | (position.diff() <= 0)
    return nn.functional.pad(begins.long().cumsum(0), (1, 0))[: len(index)]


def policy_gradient(log_student: Tensor, log_sampled: Tensor, worth: Tensor, clip: float | None = None) -> Tensor:
    """-ρ · A for each token, ρ = s / s_old with its gradient.

    Args:
        log_student: of the student as it is now.
        log_sampled: of the student that drew the tokens, s_old, under the law of sampling (temperature, top-p).
        worth: A, `advantage` or `returns` of it. No gradient flows through it.
        clip: ε: ρ counts as at most 1 + ε where A is positive and at least 1 - ε where it is negative (PPO).
    """
    worth = worth.detach()
    ratio = (log_student - log_sampled.detach()).clamp_max(LONGEST).exp()
    if clip is None:
        return -ratio * worth
    return -torch.minimum(ratio * worth, ratio.clamp(1 - clip, 1 + clip) * worth)
