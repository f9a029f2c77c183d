"""On-policy distillation: texts that the student itself continues take the place of the data's.

GKD (Agarwal et al. 2024, https://arxiv.org/abs/2306.13649): a student that learns from its own texts meets the mistakes
that it will make.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge, Gt, Le
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from distillery.core.numerics import log_softmax
from distillery.core.random import hash_key, uniforms
from distillery.data.tokens import IGNORED
from distillery.losses.chunked import map_rows
from distillery.losses.on_policy import SAMPLED
from distillery.losses.settings import Positive, check_settings
from distillery.losses.signals import Signals
from distillery.models.evaluation_mode import evaluating
from distillery.models.taps.end_before_head import before_heads
from distillery.models.taps.network import Network
from distillery.models.text.generation import generate, left_padded
from distillery.tasks.task import Batch, Task

COIN, TOKENS = 11, 12  # hashed into the seed: independent draws
GRAM = 4  # tokens of the sequences that are looked for again in one text


class Round(NamedTuple):
    """What is said of the texts of one round on this process.

    Attributes:
        texts: how many were drawn.
        tokens: of a text, on average.
        truncated: share of texts that reached `new_tokens` without an end.
        entropy: of the law from which the tokens were drawn, nats a token.
        repeated: share of the sequences of four tokens that occur earlier in the same text.
        seconds: of wall-clock time that they took.
    """

    texts: int
    tokens: float
    truncated: float
    entropy: float
    repeated: float
    seconds: float


@dataclass(eq=False)
class Rollouts:
    """When the student learns from its own texts, and how these are drawn.

    A prompt is what stands before the first token that bears loss in a sample of the data, and the student continues
    it: dropout off, no gradient, with none of its own settings of generation. A draw is a function of the seed, the
    number of the update and the `index` of the sample: resumed runs, and other numbers of processes, draw alike.

    The result is a batch like the data's: every loss works on it. Its samples have no label, so that the loss of the
    task, and others that read labels, count on the data's texts alone; `sampled_log_prob` marks the drawn tokens.
    Where a loss reads its values, they are those of `scored`.

    Args:
        share: λ, the share of rounds on the student's own texts; a number or a schedule.
        new_tokens: the longest continuation.
        prompt_tokens: the number of tokens of a prompt, for documents without one; None: as the data say.
        temperature, top_p, top_k: the law of sampling: T, then the likeliest k tokens (0: all), then the likeliest ones
            that together have the probability p. Its log-probabilities are recorded, those of what is left.
        updates: how many updates a round is long. It draws the texts of all of them at its beginning; those of the
            later ones are then stale.
        ends: ids of the tokens that end a text; None: the tokenizer's, and those that a pretrained student names.
        seed: of the coin and of the draws.
        vocabulary: how many logits count; None: all.

    Raises:
        UserError: a setting has a value that its type excludes.
    """

    share: Annotated[float, Ge(0), Le(1)] = 1.0
    new_tokens: PositiveInt = 128
    prompt_tokens: PositiveInt | None = None
    temperature: Positive = 1.0
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    top_k: NonNegativeInt = 0
    updates: PositiveInt = 1
    ends: Sequence[NonNegativeInt] | None = None
    seed: NonNegativeInt = 0
    vocabulary: int | None = field(default=None, init=False)
    last: Round | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def remark(self) -> str:
        """What the plan and the record say of them, with the law of sampling."""
        law = [f"T={self.temperature:g}", f"top_p={self.top_p:g}", f"top_k={self.top_k or 'all'}"]
        stale = f", {self.updates} updates at a time" if self.updates > 1 else ""
        return (
            f"texts that it generates (rollouts.share): up to {self.new_tokens} new tokens, sampled with "
            f"{', '.join(law)}{stale}; ids of end tokens: {list(self.ends or ())}"
        )

    def own(self, update: int) -> bool:
        """Whether the round that begins with this update is on the student's own texts: the same on all processes."""
        number = torch.zeros(1, dtype=torch.int64)
        return bool(uniforms(hash_key(self.seed, COIN), update, number, 0, 1) < self.share)

    def law(self, logits: Tensor) -> Tensor:
        """The log-probabilities with which tokens are drawn, float32 [B,V]; -inf for those that cannot be."""
        log_p = log_softmax(logits.float(), self.temperature)
        if 0 < self.top_k < log_p.shape[-1]:
            least = log_p.topk(self.top_k).values[..., -1:]
            log_p = log_softmax(log_p.masked_fill(log_p < least, -torch.inf), 1.0)
        if self.top_p < 1:
            likeliest, order = log_p.sort(descending=True, stable=True)
            before = likeliest.exp().cumsum(-1) - likeliest.exp()
            beyond = torch.empty_like(order, dtype=torch.bool).scatter(-1, order, before >= self.top_p)
            log_p = log_softmax(log_p.masked_fill(beyond, -torch.inf), 1.0)
        return log_p

    def draw(self, net: nn.Module, batches: Sequence[Batch], update: int) -> list[dict[str, Tensor]]:
        """The batches with the student's continuations of their prompts in place of what followed them.

        Args:
            net: the student's network.
            batches: of one round on this process. They are continued together.
            update: the number of the first one.
        """
        begun = time.monotonic()
        parts = [left_padded(batch["input_ids"], self.prompts(batch)) for batch in batches]
        longest = max(ids.shape[1] for ids, _ in parts)
        ids, mask = (
            torch.cat([nn.functional.pad(part[kind], (longest - part[kind].shape[1], 0)) for part in parts])
            for kind in (0, 1)
        )
        index = torch.cat([batch["index"] for batch in batches])
        # two numbers of 24 bits for each token: rare ones of large vocabularies would never be drawn with one
        high, low = uniforms(hash_key(self.seed, TOKENS), update, index, 0, 2 * self.new_tokens).double().chunk(2, 1)
        uniform = high + low * 2.0**-24

        def choose(logits: Tensor, step: int) -> tuple[Tensor, Tensor]:
            law = self.law(logits)
            token = inverted(law, uniform[:, step])
            entropy = -(law.exp() * law.masked_fill(law.isinf(), 0.0)).sum(-1)
            return token, torch.stack([law.gather(-1, token[:, None]).squeeze(-1), entropy], -1)

        made = generate(net, ids, mask, self.new_tokens, self.ends or (), choose, self.vocabulary)
        whole = batch_of(ids, mask.sum(1), made.tokens, made.lengths, made.figures[..., 0], index)
        count = made.lengths.sum().clamp_min(1)
        self.last = Round(
            len(index),
            made.lengths.double().mean().item(),
            1 - made.ended.double().mean().item(),
            (made.figures[..., 1].sum() / count).item(),
            repetition(made.tokens, made.lengths),
            time.monotonic() - begun,
        )
        sizes = [len(batch["index"]) for batch in batches]
        parts_of = zip(*(value.split(sizes) for value in whole.values()), strict=True)
        return [_without_padding(dict(zip(whole, part, strict=True))) for part in parts_of]

    def prompts(self, batch: Batch) -> Tensor:
        """How many tokens of each sample are its prompt [B]; 0 where no token bears loss: it is not continued."""
        bears = batch["target"] != IGNORED
        if self.prompt_tokens is None:
            return bears.int().argmax(1)  # 0 where none does
        return torch.where(bears.any(1), (batch["attention_mask"].sum(1) - 1).clamp_max(self.prompt_tokens), 0)


def scored(rollouts: Rollouts, student: Network, task: Task, batch: Batch) -> dict[str, Tensor]:
    """A drawn batch with the log-probabilities that a training forward gives its tokens, in evaluation mode.

    In 16 bits those of generation, whose forwards have other shapes and a cache, are rounded otherwise: ρ would not be
    1 before an update.
    """

    def log_probs(rows: Signals, part: Batch) -> dict[str, Tensor]:
        return {SAMPLED: rollouts.law(rows.logits).gather(-1, part["target"][:, None]).squeeze(-1)}

    with evaluating(student), before_heads([student]):
        found = map_rows(log_probs, *task.rows(student(batch), batch), task.rows_per_chunk)[SAMPLED]
    return {**batch, SAMPLED: batch[SAMPLED].masked_scatter(batch["target"] != IGNORED, found)}


def inverted(log_p: Tensor, uniform: Tensor) -> Tensor:
    """The token at which the cumulative distribution passes `uniform`: [B,V], [B] in [0, 1) → [B]."""
    reached = log_p.double().exp().cumsum(-1)
    return torch.searchsorted(reached, uniform[:, None] * reached[:, -1:], right=True).squeeze(-1)


def batch_of(
    prompts: Tensor, prompt_lengths: Tensor, tokens: Tensor, lengths: Tensor, log_probs: Tensor, index: Tensor
) -> dict[str, Tensor]:
    """A batch as `documents.causal_batch` makes it, padded on the right, of which the new tokens alone bear loss.

    Padding is known by its place: the end of a text, which bears loss, may have the same id.

    Args:
        prompts: padded on the left [B,P].
        tokens, log_probs: that follow them [B,T], of which the first `lengths` [B] count.
    """
    longest = prompts.shape[1]
    places = torch.arange(longest + tokens.shape[1], device=prompts.device)
    counts = places < (prompt_lengths + lengths)[:, None]
    new = counts & (places >= prompt_lengths[:, None])
    source = (places + longest - prompt_lengths[:, None]).clamp_max(
        len(places) - 1
    )  # of a row that begins with padding
    ids = torch.cat([prompts, tokens], 1).gather(1, source)
    drawn = torch.cat([torch.full(prompts.shape, torch.nan, device=prompts.device), log_probs], 1).gather(1, source)
    return {
        "input_ids": ids.where(counts, 0),
        "attention_mask": counts.long(),
        "position_ids": places.where(counts, 0),
        "target": ids.where(new, IGNORED),
        "bytes": torch.zeros_like(ids),  # they are of no text of the data
        SAMPLED: drawn.where(new, torch.nan),
        "index": index,
        "labelled": torch.zeros_like(index, dtype=torch.bool),
    }


def given(batch: Batch) -> Batch:
    """A batch of the data, which says that none of its tokens was drawn."""
    return {**batch, SAMPLED: torch.full(batch["target"].shape, torch.nan, device=batch["target"].device)}


def repetition(tokens: Tensor, lengths: Tensor) -> float:
    """The share of sequences of `GRAM` tokens that occur earlier in the same text."""
    count = seen = 0
    for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True):
        grams = [tuple(row[start : start + GRAM]) for start in range(length - GRAM + 1)]
        count, seen = count + len(grams), seen + len(grams) - len(set(grams))
    return seen / max(1, count)


def _without_padding(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch without columns that no sample of it needs."""
    longest = max(1, int(batch["attention_mask"].sum(1).max()))
    return {name: value[:, :longest] if value.dim() == 2 else value for name, value in batch.items()}
