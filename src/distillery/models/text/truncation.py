"""Weights of a smaller network cut from a larger one: which rows and columns of each matrix are kept."""

from dataclasses import dataclass, replace
from typing import Any, Self

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
    """The widths of a transformer: of its hidden states, its attention heads, its feed-forward layers.

    `groups` is the number of heads of keys and values, each of which `heads / groups` heads of queries share.
    """

    hidden: int
    heads: int
    groups: int
    head: int
    inner: int

    @classmethod
    def of(cls, config: Any) -> Self:
        def first(default: int, *names: str) -> int:
            return next((value for name in names if (value := getattr(config, name, None))), default)

        hidden, heads = config.hidden_size, config.num_attention_heads
        groups, head = first(heads, "num_key_value_heads"), first(hidden // heads, "head_dim")
        inner = first(4 * hidden, "intermediate_size", "hidden_dim", "n_inner")  # DistilBERT's and GPT-2's names
        return cls(hidden, heads, groups, head, inner)

    def __str__(self) -> str:
        groups = f" in {self.groups} groups" if self.groups < self.heads else ""
        return f"{self.heads} heads{groups} of width {self.head}, {self.inner} neurons, {self.hidden} hidden channels"


@dataclass(frozen=True)
class Scores:
    """How much each unit of a layer counts: hidden channels [D], heads of queries [H], feed-forward neurons [F].

    The hidden channels are those of the whole network, so their scores are the same in every layer.
    """

    hidden: Tensor
    heads: Tensor
    inner: Tensor

    @classmethod
    def falling(cls, widths: Widths) -> Self:
        """The first ones count most."""
        return cls(*(-torch.arange(float(number)) for number in (widths.hidden, widths.heads, widths.inner)))


class Truncation:
    """Keeps the units with the highest scores, the same in every matrix of a layer, in their order:

    - hidden states: `hidden` channels, in embeddings, normalisations and as inputs and outputs of layers;
    - attention: the `groups` whose heads have the highest sum, of each of these as many heads as a group of the student
      has, and of each head its first `head` queries, keys and values;
    - feed-forward layers: `inner` neurons.

    Nothing is rescaled: normalisations see other statistics, to which training adapts.

    Args:
        ours, theirs: the widths of the student and of the network that its weights are taken from.
        scores: of a layer's units; None: the first ones are kept.

    Raises:
        UserError: more or wider heads than theirs, or larger groups.
    """

    def __init__(self, ours: Widths, theirs: Widths, scores: Scores | None = None) -> None:
        if ours.heads > theirs.heads or ours.head > theirs.head:
            raise UserError(
                f"student.initialise: the student has {ours.heads} attention heads of width {ours.head}, the source "
                f"{theirs.heads} of width {theirs.head}. The source has no weights for more or wider heads. Set the "
                f"student's num_attention_heads so that hidden_size / num_attention_heads is at most {theirs.head}, or "
                f"for a causal model +student.net.config.head_dim={theirs.head}."
            )
        shared, their_shared = ours.heads // ours.groups, theirs.heads // theirs.groups
        if ours.groups > theirs.groups or shared > their_shared:
            raise UserError(
                f"student.initialise: in the student {shared} heads share one of {ours.groups} key-value heads, in the "
                f"source {their_shared} share one of {theirs.groups}. Set the student's num_key_value_heads to at most "
                f"{theirs.groups}, and num_attention_heads to at most {their_shared} times that."
            )
        self.same = ours == theirs
        self.same_but_inner = replace(ours, inner=theirs.inner) == theirs
        self._ours, self._theirs, self._scored = ours, theirs, scores is not None
        scores = scores or Scores.falling(theirs)
        self._hidden, self._inner = _highest(scores.hidden, ours.hidden), _highest(scores.inner, ours.inner)
        by_group = scores.heads.view(theirs.groups, their_shared)
        groups = _highest(by_group.sum(1), ours.groups)
        heads = torch.cat([group * their_shared + _highest(by_group[group], shared) for group in groups])
        self._heads, self._groups = _of_heads(heads, ours, theirs), _of_heads(groups, ours, theirs)

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
            f"student.initialise: {name} is {list(shape)} in the student and {list(tensor.shape)} in the source, so "
            "the part to keep is unknown. Give the student the source's sizes, or set student.initialise=null."
        )

    def _kept(self, name: str, axis: int, theirs: int, ours: int) -> Tensor | None:
        """The positions that are kept along an axis; None: all."""
        if is_of_heads(name, axis):
            units = {self._theirs.groups: self._groups, self._theirs.heads: self._heads}
            return next((kept for number, kept in units.items() if theirs == number * self._theirs.head), None)
        narrower = [
            kept
            for number, kept in ((self._theirs.hidden, self._hidden), (self._theirs.inner, self._inner))
            if theirs == number > ours == len(kept)
        ]
        if self._scored and len(narrower) > 1:
            raise UserError(
                f"student.initialise: {name} has a dimension of {theirs}, which may be hidden channels or neurons, and "
                f"the student has {ours} of both. Set student.initialise.keep=first, or give the student another "
                "intermediate_size."
            )
        return narrower[0] if narrower else None


def is_of_heads(name: str, axis: int) -> bool:
    """Whether this axis of a layer's parameter counts the units of attention heads."""
    path = name.rpartition(".")[0]
    if axis == 0:
        return path.rpartition(".")[2] in HEAD_ROWS
    return path.rpartition(".")[2] in HEAD_COLUMNS or path.endswith(AFTER_HEADS)


def _highest(scores: Tensor, number: int) -> Tensor:
    """The positions of the highest scores in ascending order, all if there are no more; of equal ones the first."""
    return scores.argsort(descending=True, stable=True)[:number].sort().values


def _of_heads(heads: Tensor, ours: Widths, theirs: Widths) -> Tensor:
    """The positions of the units of these heads."""
    return (heads[:, None] * theirs.head + torch.arange(ours.head)).flatten()
