"""Weights of a smaller network cut from a larger one: which rows and columns of each matrix are kept."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Size, Tensor

from distillery.core.errors import UserError

# The last parts of the names of attention's matrices: rows that are queries, keys or values of heads, and columns
# that read the heads' results.
HEAD_ROWS = frozenset("query key value q_lin k_lin v_lin q_proj k_proj v_proj q k v".split())
HEAD_COLUMNS = frozenset("out_lin out_proj o_proj o".split())
AFTER_HEADS = "attention.output.dense"  # BERT's, where `dense` alone is many things


@dataclass(frozen=True)
class Widths:
    """The widths of a transformer: of its hidden states, its attention heads, its feed-forward layers."""

    hidden: int
    heads: int
    head: int
    inner: int | None

    @classmethod
    def of(cls, config: Any) -> "Widths":
        hidden, heads = config.hidden_size, config.num_attention_heads
        inner = getattr(config, "intermediate_size", None) or getattr(config, "hidden_dim", None)  # DistilBERT's
        return cls(hidden, heads, getattr(config, "head_dim", None) or hidden // heads, inner)


class Truncation:
    """Keeps the first units of each kind, the same in every matrix:

    - hidden states: the first `hidden` neurons, in embeddings, normalisations and as inputs and outputs of layers;
    - attention: the first `heads` heads, and of each its first `head` queries, keys and values;
    - feed-forward layers: the first `inner` neurons.

    Nothing is rescaled: normalisations see other statistics, to which training adapts.

    Args:
        ours, theirs: the widths of the student and of the network that its weights are taken from.

    Raises:
        UserError: more or wider heads than theirs.
    """

    def __init__(self, ours: Widths, theirs: Widths) -> None:
        if ours.heads > theirs.heads or ours.head > theirs.head:
            raise UserError(
                f"student.initialise: the student has {ours.heads} attention heads of width {ours.head}, the source "
                f"{theirs.heads} of width {theirs.head}; there are no weights for more or wider ones. Set the "
                f"student's num_attention_heads so that hidden_size / num_attention_heads is at most {theirs.head}."
            )
        self.same = ours == theirs
        self._ours, self._theirs = ours, theirs
        heads = torch.arange(theirs.heads * theirs.head).view(theirs.heads, theirs.head)
        self._kept_of_heads = heads[: ours.heads, : ours.head].flatten()

    def __call__(self, name: str, tensor: Tensor, shape: Size) -> Tensor:
        """What of `tensor`, the parameter `name` of a layer, is kept to fill one of `shape`.

        Raises:
            UserError: another shape that these widths do not explain.
        """
        if self.same and tensor.shape == shape:
            return tensor
        if tensor.dim() == len(shape):
            kept = tensor
            for axis in range(len(shape)):
                index = self._kept(name, axis, tensor.shape[axis], shape[axis])
                kept = kept if index is None else kept.index_select(axis, index.to(tensor.device))
            if kept.shape == shape:
                return kept
        raise UserError(
            f"student.initialise: {name} is {list(shape)} in the student and {list(tensor.shape)} in the source, and "
            "it is not known which part to keep. Give the student the source's sizes, or set student.initialise=null."
        )

    def _kept(self, name: str, axis: int, theirs: int, ours: int) -> Tensor | None:
        """The positions that are kept along an axis; None: all."""
        if is_of_heads(name, axis) and theirs == self._theirs.heads * self._theirs.head:
            return self._kept_of_heads
        smaller = {self._theirs.hidden: self._ours.hidden, self._theirs.inner: self._ours.inner}
        return torch.arange(ours) if smaller.get(theirs) == ours and ours < theirs else None


def is_of_heads(name: str, axis: int) -> bool:
    """Whether this axis of a layer's parameter counts the units of attention heads."""
    path = name.rpartition(".")[0]
    if axis == 0:
        return path.rpartition(".")[2] in HEAD_ROWS
    return path.rpartition(".")[2] in HEAD_COLUMNS or path.endswith(AFTER_HEADS)
