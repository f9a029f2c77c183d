"""Sentence embeddings: the mean over the tokens."""

import inspect
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel


class SentenceEncoder(nn.Module):
    """Mean of the last hidden states over the tokens that count: [B, D] (Reimers and Gurevych 2019, Sentence-BERT).

    Where nothing counts the embedding is zero. A pooler of the encoder's own takes no part: it is kept, so that
    `AutoModel.from_pretrained` finds it in a saved folder, and frozen, since nothing reaches it.

    Args:
        encoder: gives `last_hidden_state` [B, L, D]; transformers' `AutoModel`.
        normalise: to unit length, so that the dot product is the cosine.
    """

    def __init__(self, encoder: PreTrainedModel, normalise: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.normalise = normalise
        self._takes_types = "token_type_ids" in inspect.signature(encoder.forward).parameters
        self.new_weights = [f"encoder.{name}" for name in getattr(encoder, "new_weights", ())]
        if (pooler := getattr(encoder, "pooler", None)) is not None:
            pooler.requires_grad_(False)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None, **ignored: Any
    ) -> Tensor:
        types = {"token_type_ids": token_type_ids} if self._takes_types else {}
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        counts = attention_mask.unsqueeze(-1).to(states.dtype)
        mean = (states * counts).sum(1) / counts.sum(1).clamp(min=1)
        return functional.normalize(mean, dim=-1) if self.normalise else mean


def pretrained_model(net: nn.Module) -> PreTrainedModel | None:
    """The network of transformers that `net` is or has inside; None: it is none of theirs."""
    inner = net.encoder if isinstance(net, SentenceEncoder) else net
    return inner if isinstance(inner, PreTrainedModel) else None
