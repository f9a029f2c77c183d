"""Continues prompts with a causal language model, token by token, with its key-value cache."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distillery.models.evaluation_mode import evaluating
from distillery.models.taps.head import precise

Choose = Callable[[Tensor, int], tuple[Tensor, Tensor]]
NEEDED = frozenset(("input_ids", "attention_mask", "position_ids", "use_cache"))
CACHES = ("cache", "past_key_values")  # what transformers calls the key-value cache, and called it before 5.20


class Continuations(NamedTuple):
    """What follows each prompt.

    Attributes:
        tokens: [B,T], 0 after the end of a text.
        figures: what was said of each token, float32 [B,T,F], 0 after the end of a text.
        lengths: how many tokens there are, with the end of the text [B].
        ended: whether the text has ended, rather than reached the last token that was allowed, bool [B].
    """

    tokens: Tensor
    figures: Tensor
    lengths: Tensor
    ended: Tensor


def can_generate(net: nn.Module) -> bool:
    """Whether `generate` can drive this network: transformers' causal models with a key-value cache."""
    return _cache_of(net) != "" and inspect.signature(net.forward).parameters.keys() >= NEEDED


def _cache_of(net: nn.Module) -> str:
    """The name of its key-value cache, among its arguments and in its output; empty if it has none."""
    return next((name for name in CACHES if name in inspect.signature(net.forward).parameters), "")


def left_padded(ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The first `lengths` [B] tokens of rows [B,L], with their ends aligned: tokens and mask, [B, longest]."""
    longest = max(1, int(lengths.max()))
    places = torch.arange(longest, device=ids.device) - (longest - lengths)[:, None]
    return ids.gather(1, places.clamp_min(0)), (places >= 0).long()


def generate(
    net: nn.Module,
    ids: Tensor,
    mask: Tensor,
    most: int,
    ends: Sequence[int],
    choose: Choose,
    vocabulary: int | None = None,
) -> Continuations:
    """The continuations of prompts, in evaluation mode and without gradients.

    None of the network's own settings of generation takes part: `choose` alone says what follows. The product of a
    plain linear head is in at least float32, whatever the precision of the network.

    Args:
        ids, mask: prompts with padding on the left, [B,P]. A prompt without tokens has no continuation.
        most: tokens of a continuation.
        ends: tokens that end a text; the end is part of the continuation.
        choose: from the logits of the next token, float32 [B,V], and how many there were before: the tokens [B], and
            figures of them [B,F].
        vocabulary: how many of the logits count; None: all.
    """
    last_alone = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(net.forward).parameters else {}
    stops = torch.tensor(list(ends), device=ids.device, dtype=ids.dtype)
    runs = mask.bool().any(1)
    mask = torch.cat([mask[:, :-1], torch.ones_like(mask[:, -1:])], 1)  # attention to nothing would be NaN
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    name = _cache_of(net)
    cache: dict[str, Any] = {}
    # Those of all steps: small tensors that remain between the logits of each would break the heap up, see `map_rows`.
    tokens, lengths = ids.new_zeros(len(ids), most), torch.zeros_like(ids[:, 0])
    figures = torch.empty(0)
    with evaluating(net), precise(net.get_output_embeddings()):  # type: ignore[operator]
        for step in range(most):
            output = net.forward(  # not `net(…)`: a compiled network would be compiled again for each length
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                **cache,
                **last_alone,
            )
            chosen, said = choose(output.logits[:, -1, :vocabulary].float(), step)
            if not step:
                figures = said.new_zeros(len(ids), most, said.shape[-1])
            tokens[:, step] = chosen.where(runs, 0)
            figures[:, step] = said.where(runs[:, None], 0.0)
            lengths += runs
            runs = runs & ~torch.isin(chosen, stops)
            if not runs.any():
                break
            ids, cache = tokens[:, step : step + 1], {name: getattr(output, name)}
            mask, positions = torch.cat([mask, torch.ones_like(ids)], 1), positions[:, -1:] + 1
    return Continuations(tokens[:, : step + 1], figures[:, : step + 1], lengths, ~runs & (lengths > 0))


def greedy(logits: Tensor, _: int) -> tuple[Tensor, Tensor]:
    """Always the likeliest token: a rule for `generate`."""
    return logits.argmax(-1), logits[:, :0]
