"""Signals stored for many samples: one row for each, or the tokens of all texts, without padding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distillery.losses.signals import Signals, is_parameter

LAYERS, ATTENTION = "layers.", "attention."  # how the names of signals other than logits begin


@dataclass
class Stored:
    """`values` of all samples: [N, ...], or [tokens, ...] where `lengths` [N] says how many each sample has.

    `transposed`: the dimension of tokens comes after that of heads, as in attention, [B, H, L, D].
    """

    values: Tensor
    lengths: Tensor | None = None
    transposed: bool = False

    def __post_init__(self) -> None:
        self.starts = None if self.lengths is None else self.lengths.cumsum(0) - self.lengths

    @classmethod
    def joined(cls, parts: Sequence["Stored"]) -> "Stored":
        """All parts, one after the other."""
        lengths = [part.lengths for part in parts if part.lengths is not None]
        values = torch.cat([part.values for part in parts])
        return cls(values, torch.cat(lengths) if lengths else None, parts[0].transposed)

    def rows(self, row: Tensor, mask: Tensor | None) -> Tensor:
        """The samples `row` [B], on the CPU; their tokens where `mask` [B, L] is not 0, and 0 elsewhere."""
        if self.starts is None:
            return self.values[row]
        assert mask is not None
        counts = mask.bool().cpu()
        places = (self.starts[row][:, None] + torch.arange(counts.shape[1]))[counts]
        padded = self.values.new_zeros(*counts.shape, *self.values.shape[1:])
        padded[counts] = self.values[places]
        return padded.transpose(1, 2) if self.transposed else padded


def stored(name: str, tensor: Tensor, mask: Tensor | None) -> Stored:
    """The `tensor` of one batch.

    Args:
        name: that of the signal. Attention has its tokens in the third dimension, others in the second.
        mask: [B, L], non-zero where a token counts; None: the samples are not texts.
    """
    tensor = tensor.cpu()
    heads = name.startswith(ATTENTION)
    tokens = tensor.transpose(1, 2) if heads else tensor
    if mask is None or tokens.dim() < 3 or tokens.shape[1] != mask.shape[1]:
        return Stored(tensor)
    counts = mask.bool().cpu()
    return Stored(tokens[counts], counts.sum(1), heads)


def by_sample(signals: Signals) -> dict[str, Tensor]:
    """Every tensor with a row for each sample, by a unique name."""
    layers = {f"{LAYERS}{tap}": tensor for tap, tensor in signals.layers.items() if not is_parameter(tap)}
    attention = {
        f"{ATTENTION}{tap}.{part}": getattr(operands, part)
        for tap, operands in signals.attention.items()
        for part in ("query", "key", "value")
    }
    logits = {"logits": signals.logits} if signals.headed is None else {"hidden": signals.headed.hidden}
    return logits | layers | attention


def with_values(signals: Signals, flat: Mapping[str, Tensor], mask: Tensor | None) -> Signals:
    """`signals` with its tensors replaced by those in `flat`, for a batch with that mask."""
    hidden = flat.get("hidden")
    return Signals(
        logits=flat["logits"] if hidden is None else hidden.new_empty(len(hidden), 0),
        layers={tap: flat.get(f"{LAYERS}{tap}", tensor) for tap, tensor in signals.layers.items()},
        attention={
            tap: replace(
                operands,
                query=flat[f"{ATTENTION}{tap}.query"],
                key=flat[f"{ATTENTION}{tap}.key"],
                value=flat[f"{ATTENTION}{tap}.value"],
                mask=operands.mask if mask is None else mask.bool()[:, None, None],
            )
            for tap, operands in signals.attention.items()
        },
        mask=mask,
        headed=None if hidden is None or signals.headed is None else replace(signals.headed, hidden=hidden),
    )
