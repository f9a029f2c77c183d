"""How much a teacher says of its distribution over the classes, and what stands for logits that are not there."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor

from distillery.core.numerics import at_least_float32, full_precision

# Of each row: all logits (also as hidden rows and a head) | k likeliest classes and the mass of the others | classes
# drawn from the teacher | the probability of the target alone.
Level = Literal["logits", "topk", "sampled", "token"]
LEVELS: tuple[Level, ...] = get_args(Level)


class Available(NamedTuple):
    """What losses may read of a teacher's distributions.

    Attributes:
        levels: all that can be had of it. Whoever gives logits gives everything.
        k: the number of classes, where not all are given.
    """

    levels: frozenset[Level] = frozenset(LEVELS)
    k: int | None = None

    @property
    def level(self) -> Level | None:
        """The first of `LEVELS` that is there; None: nothing is."""
        return next((level for level in LEVELS if level in self.levels), None)

    def __str__(self) -> str:
        words: dict[Level, str] = {
            "logits": "all logits",
            "topk": f"the {self.k} likeliest classes and the mass of the others",
            "sampled": f"{self.k} drawn classes",
            "token": "the probability of each target",
        }
        return " and ".join(words[level] for level in LEVELS if level in self.levels) or "no probabilities"


def soft_capped(logits: Tensor, cap: float | None) -> Tensor:
    """cap · tanh(logits / cap), the last step of Gemma 2; None: the logits as they are."""
    return logits if cap is None else cap * (logits / cap).tanh()


@dataclass(frozen=True)
class Headed:
    """Rows before a network's head, and the head: logits that have not been computed.

    Attributes:
        hidden: [...,H].
        weight: [V,H], also where it is the embedding.
        bias: [V].
        softcap: see `soft_capped`.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None

    def logits(self) -> Tensor:
        """[...,V] in at least float32. Low precision is widened before the product, which is not rounded."""
        with full_precision(self.hidden):
            product = at_least_float32(self.hidden) @ at_least_float32(self.weight).mT
            return self.capped(product if self.bias is None else product + self.bias)

    def capped(self, logits: Tensor) -> Tensor:
        return soft_capped(logits, self.softcap)

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """With `change` of each tensor."""
        bias = None if self.bias is None else change(self.bias)
        return replace(self, hidden=change(self.hidden), weight=change(self.weight), bias=bias)

    def rows(self, which: Tensor | slice) -> Self:
        """The rows at these places, or where a mask is true."""
        return replace(self, hidden=self.hidden[which])

    def first_classes(self, number: int) -> Self:
        """The head of the first classes alone."""
        if len(self.weight) <= number:
            return self
        return replace(self, weight=self.weight[:number], bias=None if self.bias is None else self.bias[:number])


@dataclass(frozen=True)
class SparseLogits:
    """What is known of each row's distribution where not all classes are: log-probabilities at T = 1, in nats.

    They are the teacher's own, never renormalised over the classes given.

    Attributes:
        classes: [...,k] int64. With a tail they are the k likeliest of a row, in any order. Without one they were drawn
            from the teacher with replacement, in the order in which they were drawn; each counts 1/k. k may be 0.
        log_p: [...,k].
        log_tail: [...], the logarithm of the mass of all other classes.
        log_p_target: [...], of the row's target, whether or not it is among the classes.
        known: bool [...], False where nothing is known: such a row adds nothing to a loss. None: all rows are known.
    """

    classes: Tensor
    log_p: Tensor
    log_tail: Tensor | None = None
    log_p_target: Tensor | None = None
    known: Tensor | None = None

    @property
    def available(self) -> Available:
        k = self.classes.shape[-1]
        levels: set[Level] = set() if self.log_p_target is None else {"token"}
        if k:
            levels.add("sampled" if self.log_tail is None else "topk")
        return Available(frozenset(levels), k)

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """With `change` of each tensor."""
        given = {name: getattr(self, name) for name in ("classes", "log_p", "log_tail", "log_p_target", "known")}
        return replace(self, **{name: change(values) for name, values in given.items() if values is not None})

    def rows(self, which: Tensor | slice) -> Self:
        """The rows at these places, or where a mask is true."""
        return self.each(lambda values: values[which])

    def likeliest(self, k: int) -> Self:
        """The k likeliest of the classes; the others are added to the tail."""
        assert self.log_tail is not None, "of drawn classes none is left out"
        if k == self.classes.shape[-1]:
            return self
        log_p, places = self.log_p.sort(dim=-1, descending=True)
        tail = torch.logaddexp(self.log_tail, log_p[..., k:].logsumexp(-1))
        return replace(self, classes=self.classes.gather(-1, places[..., :k]), log_p=log_p[..., :k], log_tail=tail)
