"""What a network gives for one batch: its logits, and the layers that some loss asked for.

A *tap* names the place to record:

- `path`         the output of the module at that path of `named_modules()`, e.g. `layer2`
- `path:input`   the module's first input
- `path:weight`  (or another name) that parameter of the module
- `path[i]`      element i of an output that is a tuple or list
- `head`         the final linear layer's output, whatever it is called in this network
- `embedding`    the head's input: the pooled features, [B, D]
- `distillation_logits`  the output of a second head, which learns from the teacher (timm's `head_dist`)

`head:weight` and `head:bias` are the parameters of the final linear layer.

An *attention tap* is the path of a module that computes attention (timm's `blocks.3.attn`, BERT's
`encoder.layer.3.attention.self`); what is recorded there is an `Attention`.
"""

import re
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import Tensor

from distillery.models.taps.attention_recorder import Attention

INPUT = "input"
ALIASES = {"head": "", "embedding": ":input", "head:weight": ":weight", "head:bias": ":bias"}  # what of the head
DISTILLATION = "distillation_logits"
TAP = re.compile(r"(?P<path>[^:\[\]]*)(:(?P<part>\w+))?(\[(?P<item>\d+)\])?")


class Place(NamedTuple):
    """Where a tap records: a module, what of it (None: its output, `input`, a parameter), which element of a tuple."""

    path: str
    part: str | None
    item: int | None


@dataclass
class Signals:
    """`logits` [B, C] (or the rows of them that count, [N, C]); `layers` and `attention` by tap.

    `mask` [B, L] is non-zero where a token counts; None: all of them.
    """

    logits: Tensor
    layers: dict[str, Tensor] = field(default_factory=dict)
    attention: dict[str, Attention] = field(default_factory=dict)
    mask: Tensor | None = None

    def detach(self) -> "Signals":
        """The same values, through which no gradient flows."""
        attention = {
            tap: replace(a, query=a.query.detach(), key=a.key.detach(), value=a.value.detach())
            for tap, a in self.attention.items()
        }
        layers = {tap: tensor.detach() for tap, tensor in self.layers.items()}
        return Signals(self.logits.detach(), layers, attention, self.mask)


def is_parameter(tap: str) -> bool:
    """Whether it records a module's parameter: then it has no row for each sample."""
    match = TAP.fullmatch(tap)
    return match is not None and match["part"] not in (None, INPUT)
