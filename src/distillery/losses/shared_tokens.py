"""The tokens that two vocabularies have in common, and where all others belong."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.core.numerics import log_softmax

# What each id stands for: the bytes of a text, or the name of a special token, as that which ends a text.
Vocabulary = Sequence[bytes | str]
Unmatched = Literal["prefix", "rest"]
RESOLUTION = 1e-7  # of the mass of the rest: without it, a network without such tokens would be infinitely far


class SharedTokens(nn.Module):
    """Sums the probabilities of one vocabulary over the classes that it shares with another.

    Each token that both have is a class. Any other belongs to the longest of these that it begins with ('prefix'), or
    to a class of its own kind, the rest, as a token does that begins with none.

    Attributes:
        size: tokens in the vocabulary.
        classes: the class of each token, [size].
        shared: whether the other vocabulary has the token, bool [size].
        unmatched: the tokens that it does not have.
        beginnings: whether a class begins a word, [classes]; of equal vocabularies all do.
        equal: whether the vocabularies are.
    """

    classes: Tensor
    shared: Tensor
    unmatched: Tensor
    first: Tensor
    others: Tensor
    beginnings: Tensor

    def __init__(
        self, classes: Sequence[int], shared: Sequence[bool], number: int, rest: bool, beginnings: Sequence[bool]
    ) -> None:
        super().__init__()
        self.size, self.rest = len(classes), rest
        of = torch.tensor(classes)
        first = torch.full((number + 1,), self.size).scatter_reduce(0, of, torch.arange(self.size), "amin")[:number]
        self.register_buffer("classes", of, persistent=False)
        self.register_buffer("shared", torch.tensor(shared), persistent=False)
        self.register_buffer("unmatched", (~torch.tensor(shared)).nonzero()[:, 0], persistent=False)
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("beginnings", torch.tensor(beginnings), persistent=False)
        self.equal = all(beginnings)
        self.in_order = torch.equal(first, torch.arange(number))  # then a view saves time
        alone = torch.zeros(self.size, dtype=torch.bool).index_fill(0, first, True)
        self.register_buffer("others", (~alone).nonzero()[:, 0], persistent=False)

    def log_probabilities(self, logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Of the tokens, [N, size], and of the classes: logits [N, V], of which the first `size` are tokens."""
        log_p = log_softmax(logits[..., : self.size], temperature)
        found = log_p[:, : len(self.first)] if self.in_order else log_p[:, self.first]
        if self.rest:
            found = torch.cat([found, torch.full_like(found[:, :1], RESOLUTION).log()], 1)
        if len(self.others):
            mass = log_p[:, self.others].exp()
            summed = torch.zeros_like(found).index_add(1, self.classes[self.others], mass)
            found = torch.logaddexp(found, summed.clamp_min(torch.finfo(summed.dtype).tiny).log())
        return log_p, found


def shared_tokens(
    student: Vocabulary, teacher: Vocabulary, unmatched: Unmatched = "prefix"
) -> tuple[SharedTokens, SharedTokens]:
    """The classes that two vocabularies share, numbered in the order of the student's ids.

    Raises:
        UserError: they have no token in common.
    """
    theirs = set(teacher)
    number: dict[bytes | str, int] = {}
    for token in student:
        if token in theirs:
            number.setdefault(token, len(number))
    if not number:
        raise UserError("no token of the two tokenizers stands for the same bytes.")

    def class_of(token: bytes | str) -> int:
        if unmatched == "prefix" and isinstance(token, bytes):
            beginnings = (token[:end] for end in range(len(token), 0, -1))
            return next((number[part] for part in beginnings if part in number), len(number))
        return number.get(token, len(number))

    classes = [[class_of(token) for token in each] for each in (student, teacher)]
    rest = any(len(number) in each for each in classes)
    equal = all(token in number for token in (*student, *teacher))
    beginnings = [equal or _begins_word(token) for token in number] + [False] * rest
    found = (
        SharedTokens(of, [token in number for token in each], len(number), rest, beginnings)
        for of, each in zip(classes, (student, teacher), strict=True)
    )
    ours, other = found
    return ours, other


def _begins_word(token: bytes | str) -> bool:
    """Whether tokenizers end a token before it whatever comes before: at blanks, punctuation and special tokens."""
    return isinstance(token, str) or (token[:1] < b"\x80" and not token[:1].isalnum())
