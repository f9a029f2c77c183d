"""What the losses read of a network for one batch: its logits, and the layers that some loss asks for.

A *tap* names what to record:

- `path`         the output of the module with that path in `named_modules()`, e.g. `layer2`
- `path:input`   the module's first input
- `path:weight`  (or another name) that parameter of the module
- `path[i]`      element i of an output that is a tuple or list
- `head`         the output of the final linear layer, whatever its name in this network
- `embedding`    the head's input: the pooled features, [B, D]
- `output`       what the network itself gives, where that is one tensor: the vector of a text
- `distillation_logits`  the output of a second head, which learns from the teacher (timm's `head_dist`)

`head:weight` and `head:bias` are the parameters of the final linear layer.

An *attention tap* is the path of a module that computes attention (timm's `blocks.3.attn`, BERT's
`encoder.layer.3.attention.self`). It records an `Attention`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from distillery.core.numerics import at_least_float32, full_precision
from distillery.losses.levels import Available, Headed, Level, SparseLogits
from distillery.losses.tokens import among

INPUT = "input"
ALIASES = {"head": "", "embedding": ":input", "head:weight": ":weight", "head:bias": ":bias"}  # the part of the head
DISTILLATION = "distillation_logits"
OUTPUT = "output"
TAP = re.compile(r"(?P<path>[^:\[\]]*)(:(?P<part>\w+))?(\[(?P<item>\d+)\])?")


class Place(NamedTuple):
    """What a tap records: a module, its part (None: output; `input`; a parameter), and the element of a tuple."""

    path: str
    part: str | None
    item: int | None


@dataclass
class Attention:
    """The operands of one layer's softmax, after rotary embedding and normalisation.

    `query`, `key` and `value` are [B, H, L, D]. `mask` is boolean (True: may attend) or is added to the scores; it
    broadcasts to [B, H, L, L]. `scale` multiplies the scores. The model itself keeps its fused kernel.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float

    def each(self, change: Callable[[Tensor], Tensor]) -> "Attention":
        """With `change` of each tensor."""
        mask = None if self.mask is None else change(self.mask)
        return Attention(change(self.query), change(self.key), change(self.value), mask, self.scale)

    def scores(self) -> Tensor:
        """Query · key · scale, without the mask: [B, H, L, L] in at least float32."""
        with full_precision(self.query):
            return at_least_float32(self.query) @ at_least_float32(self.key).mT * self.scale

    def masked_scores(self, tokens: Tensor | None = None) -> Tensor:
        """`scores`, with the lowest finite number at positions that may not be attended to (see `among`).

        If a query may attend to nothing, its softmax is uniform.

        Args:
            tokens: [B, L], non-zero where a token counts. The others may not be attended to either.
        """
        scores = self.scores()
        if self.mask is not None and self.mask.dtype == torch.bool:
            scores = scores.masked_fill(~self.mask, -torch.inf)
        elif self.mask is not None:
            scores = scores + self.mask
        return among(scores, tokens)


@dataclass
class Signals:
    """`logits` [B, C], [B, L, C] or [B, H, W, C], or the rows of them that count, [N, C]; `layers`, `attention` by tap.

    `mask` [B, L] is non-zero where a token counts; None: all tokens count.

    Where logits are not given, or not computed yet, they are [B, 0]. Then `headed` or `sparse` may have what is known
    of them, with the same leading dimensions that they would have.

    A network that reads other tokens than the student names its `tokenizer`: its columns of the batch are called
    `<tokenizer>/input_ids` and so on. `of_rows` then is what the batch says of each of its rows of logits.
    """

    logits: Tensor
    layers: dict[str, Tensor] = field(default_factory=dict)
    attention: dict[str, Attention] = field(default_factory=dict)
    mask: Tensor | None = None
    headed: Headed | None = None
    sparse: SparseLogits | None = None
    tokenizer: str | None = None
    of_rows: Mapping[str, Tensor] | None = None

    @property
    def available(self) -> Available:
        """What is known of the distributions."""
        if self.logits.shape[-1] or self.headed is not None:
            return Available()
        return Available(frozenset()) if self.sparse is None else self.sparse.available

    @property
    def level(self) -> Level | None:
        """The highest level of them, see `LEVELS`."""
        return self.available.level

    def detach(self) -> "Signals":
        """The same values, detached from the graph."""
        return self.each(Tensor.detach)

    def each(self, change: Callable[[Tensor], Tensor]) -> "Signals":
        """With `change` of each tensor that a forward has given."""
        return replace(
            self,
            logits=change(self.logits),
            layers={tap: change(tensor) for tap, tensor in self.layers.items()},
            attention={tap: attention.each(change) for tap, attention in self.attention.items()},
            mask=None if self.mask is None else change(self.mask),
            headed=None if self.headed is None else self.headed.each(change),
            sparse=None if self.sparse is None else self.sparse.each(change),
        )

    def rows(self, which: Tensor | slice) -> "Signals":
        """The rows of logits, or of what stands for them, at these places or where a mask is true. All else stays."""
        logits = self.logits[which] if self.logits.shape[-1] else self.logits
        headed = None if self.headed is None else self.headed.rows(which)
        return replace(
            self, logits=logits, headed=headed, sparse=None if self.sparse is None else self.sparse.rows(which)
        )

    def computed(self) -> "Signals":
        """With logits, where hidden rows and a head stand for them."""
        return self if self.headed is None else replace(self, logits=self.headed.logits(), headed=None)

    def take(self, rows: Tensor, samples: Tensor) -> "Signals":
        """The signals of some samples alone.

        Args:
            rows: which rows of `logits` are theirs, bool [N].
            samples: which samples they are, bool [B].
        """
        attention = {
            tap: Attention(a.query[samples], a.key[samples], a.value[samples], _of(a.mask, samples), a.scale)
            for tap, a in self.attention.items()
        }
        layers = {tap: tensor if is_parameter(tap) else tensor[samples] for tap, tensor in self.layers.items()}
        own = self.rows(rows)
        logits = own.logits if own.logits.shape[-1] else self.logits[samples]  # [B, 0]
        mask = None if self.mask is None else self.mask[samples]
        return replace(own, logits=logits, layers=layers, attention=attention, mask=mask)


def _of(mask: Tensor | None, samples: Tensor) -> Tensor | None:
    """The part of an attention mask that belongs to some samples; one that is the same for all stays as it is."""
    return mask if mask is None or mask.dim() < 4 or len(mask) == 1 else mask[samples]


def is_parameter(tap: str) -> bool:
    """Whether the tap records a parameter, which has no row for each sample."""
    match = TAP.fullmatch(tap)
    return match is not None and match["part"] not in (None, INPUT)
