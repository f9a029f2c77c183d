"""What one attention layer does with a batch: its queries, keys and values, from which maps and relations derive."""

from dataclasses import dataclass

import torch
from torch import Tensor

from distillery.losses.numerics import at_least_float32, full_precision


@dataclass
class Attention:
    """The operands of one layer's softmax, after rotary embedding and normalisation.

    `query`, `key`, `value` are [B, H, L, D]; `mask` is boolean (True: may attend) or a number added to the scores,
    and broadcasts to [B, H, L, L]; `scale` multiplies the scores. The model itself keeps its fused kernel.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float

    def scores(self) -> Tensor:
        """Query · key · scale, without the mask: [B, H, L, L] in at least float32."""
        with full_precision(self.query):
            return at_least_float32(self.query) @ at_least_float32(self.key).mT * self.scale

    def log_probabilities(self) -> Tensor:
        """Log softmax of the masked scores, [B, H, L, L]; -inf where a position may not be attended to."""
        scores = self.scores()
        if self.mask is not None:
            allowed = self.mask.dtype == torch.bool
            scores = scores.masked_fill(~self.mask, -torch.inf) if allowed else scores + self.mask
        return scores.log_softmax(-1)
