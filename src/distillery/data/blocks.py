"""Documents in the blocks that a causal language model reads: cut into pieces, packed, and served in batches."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillery.data.sampler import BatchKey
from distillery.data.tokens import IGNORED, Tokens

Integers = NDArray[np.int64]
AT_ONCE = 1_000_000  # tokens that are counted together


class Pieces(NamedTuple):
    """Parts of documents that a network reads at once: [P] each."""

    starts: Integers  # in the concatenated tokens
    lengths: Integers


def cut(starts: Integers, lengths: Integers, most: int, rest: bool = True) -> Pieces:
    """Documents in pieces of at most `most` tokens, that overlap by one token, in the order of the documents.

    The first token of a piece has no context and bears no loss; as it is the last of the piece before it, every token
    but the first of a document bears loss exactly once, whatever `most` is. A document of one token has no piece.

    Args:
        starts, lengths: of the documents in the concatenated tokens, [D].
        rest: False: keep the first piece of each document alone.
    """
    step = most - 1
    counts = -(-(lengths - 1) // step)
    if not rest:
        counts = np.minimum(counts, 1)
    document = np.repeat(np.arange(len(lengths)), counts)
    offsets = (np.arange(len(document)) - np.repeat(counts.cumsum() - counts, counts)) * step
    return Pieces(starts[document] + offsets, np.minimum(lengths[document] - offsets, most))


def best_fit(lengths: Integers, size: int) -> Integers:
    """The block of each piece [P]: longer pieces first, each into the fullest block that still has room for it.

    No piece is cut (Ding et al. 2024, Fewer Truncations Improve Language Modeling, https://arxiv.org/abs/2404.10830).
    The blocks are numbered by their first pieces.
    """
    blocks = np.zeros(len(lengths), dtype=np.int64)
    room: list[tuple[int, int]] = []  # left in a block, and its number
    made = 0
    for piece in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[piece])
        place = bisect_left(room, (length, -1))
        if place < len(room):
            free, block = room.pop(place)
        else:
            free, block, made = size, made, made + 1
        blocks[piece] = block
        if free > length:
            insort(room, (free - length, block))
    first = np.full(made, len(lengths))
    np.minimum.at(first, blocks, np.arange(len(lengths)))
    return np.argsort(np.argsort(first))[blocks]


def ranges(starts: Integers, lengths: Integers) -> Integers:
    """The numbers start, start + 1, …, `length` of them, for each start, one after another."""
    offsets = np.arange(int(lengths.sum())) - np.repeat(lengths.cumsum() - lengths, lengths)
    return np.repeat(starts, lengths) + offsets


@dataclass(frozen=True)
class PackedTokens:
    """Blocks of tokens. Only the places of their pieces are held: the tokens stay where those of the documents are.

    Attributes:
        tokens: of the documents: `input_ids` and `bytes`, and `target` if not every token bears loss.
        pieces: those of the first block, then those of the second, and so on.
        first: the first piece of each block, and the number of pieces, [B + 1].
        lengths: tokens of each block, [B].
        identity: identifies the documents, the tokenizer and the packing.
    """

    tokens: Tokens
    pieces: Pieces
    first: Integers
    lengths: Tensor
    identity: bytes

    def content(self) -> bytes:
        """Bytes that identify the tokens, for the fingerprint."""
        return self.identity

    def batch(self, index: Tensor, length: int) -> dict[str, Tensor]:
        """The columns of the blocks `index` [B] and `position_ids`, padded to `length`, and `attention_mask`."""
        blocks = index.numpy()
        pieces = ranges(self.first[blocks], self.first[blocks + 1] - self.first[blocks])
        starts, sizes = self.pieces.starts[pieces], self.pieces.lengths[pieces]
        mask = torch.arange(length) < self.lengths[index][:, None]
        positions = torch.from_numpy(ranges(np.zeros_like(sizes), sizes))
        padded = torch.zeros(mask.shape, dtype=torch.int64).masked_scatter(mask, positions)
        return {**self.tokens.at(torch.from_numpy(ranges(starts, sizes)), mask), "position_ids": padded}


@dataclass(frozen=True)
class Blocks:
    """The documents of a split as a network reads them.

    Attributes:
        tokens: of the blocks, with `position_ids`, which begin anew at each piece.
        documents, longer: how many documents there are, and how many have more tokens than fit into a block.
        read, losses: how many different tokens of the documents are in the blocks, and how many of these bear loss.
        bytes: of the documents.
        left_out: how many tokens are in no block as their documents are truncated.
        lossless: how many pieces are in no block, and how many tokens they have, as none of these bears loss.
        most: the tokens that fit into a block.
    """

    tokens: PackedTokens
    documents: int
    longer: int
    read: int
    losses: int
    bytes: int
    left_out: int
    lossless: tuple[int, int]
    most: int

    def remark(self, split: str, origin: str = "") -> str:
        """What is to be said of the blocks; `origin`: of what the documents are made, where they are not the texts."""
        blocks, total = len(self.tokens.lengths), self.read + self.left_out + self.lossless[1]
        padding = 1 - int(self.tokens.lengths.sum()) / max(1, self.most * blocks)
        said = (
            f"{split}: {self.documents:,} documents{origin}, {total:,} tokens ({total / max(1, self.bytes):.3f} per "
            f"byte), in {blocks:,} blocks of {self.most:,} ({padding:.1%} empty); "
            f"{self.losses / max(1, self.read):.2%} of the tokens bear loss"
        )
        pieces, tokens = self.lossless
        if self.left_out:
            said += f"; {self.longer:,} documents are longer and truncated, by {self.left_out:,} tokens in all"
            if pieces:
                said += f"; {pieces:,} of them keep no token that bears loss and are left out (data.max_length)"
        elif self.longer:
            said += f"; {self.longer:,} documents are longer and cut into pieces that overlap by one token"
            if pieces:
                said += f"; {pieces:,} pieces of {tokens:,} tokens bear no loss and are left out"
        return said


def blocks_of(tokens: Tokens, documents: Pieces, most: int, pack: bool, rest: bool, identity: bytes) -> Blocks:
    """The blocks of some documents, numbered from 0. Pieces without a token that bears loss are in none.

    Args:
        tokens: of all documents: `input_ids` and `bytes`, and `target` if not every token bears loss.
        documents: their places among the tokens.
        most: tokens of a block.
        pack: whether a block may have several pieces; False: one in each.
        rest: whether what does not fit of a longer document is in pieces of its own; False: it is dropped.
        identity: of the blocks, see `PackedTokens`.
    """
    starts, lengths = documents
    every = cut(starts, lengths, most, rest)
    losses = _losses(tokens, every)
    pieces = Pieces(*(each[losses > 0] for each in every))
    block = best_fit(pieces.lengths, most) if pack else np.arange(len(pieces.lengths))
    order = np.argsort(block, kind="stable")
    held = np.bincount(block, weights=pieces.lengths).astype(np.int64)
    packed = PackedTokens(
        tokens,
        Pieces(pieces.starts[order], pieces.lengths[order]),
        np.searchsorted(block[order], np.arange(len(held) + 1)),
        torch.from_numpy(held),
        identity,
    )
    without = every.lengths[losses == 0]
    left_out = int(np.maximum(lengths - most, 0).sum()) if not rest else 0
    return Blocks(
        packed,
        documents=len(lengths),
        longer=int((lengths > most).sum()),
        read=int((every.lengths - 1).sum() + (lengths > 1).sum() - without.sum()),
        losses=int(losses.sum()),
        bytes=int(sums_over(tokens.columns["bytes"], documents).sum()),
        left_out=left_out,
        lossless=(len(without), int(without.sum())),
        most=most,
    )


def _losses(tokens: Tokens, pieces: Pieces) -> Integers:
    """How many tokens of each piece bear loss [P]: at most all but its first."""
    if "target" not in tokens.columns:
        return pieces.lengths - 1
    return sums_over(tokens.columns["target"], Pieces(pieces.starts + 1, pieces.lengths - 1), bearing=True)


def sums_over(column: Tensor, pieces: Pieces, bearing: bool = False) -> Integers:
    """The sum of the column over each piece, or how many of its values are not `IGNORED` (`bearing`), [P]."""
    found = [np.zeros(0, dtype=np.int64)]
    for some in _parts(pieces):
        values = column[torch.from_numpy(ranges(*some))].numpy()
        reached = np.concatenate([[0], (values != IGNORED if bearing else values).cumsum(dtype=np.int64)])
        ends = some.lengths.cumsum()
        found.append(reached[ends] - reached[ends - some.lengths])
    return np.concatenate(found)


def _parts(pieces: Pieces) -> Iterator[Pieces]:
    """The pieces in groups of about `AT_ONCE` tokens."""
    number = pieces.lengths.cumsum() // AT_ONCE
    bounds = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(number)]
    for first, last in pairwise(bounds):
        yield Pieces(pieces.starts[first:last], pieces.lengths[first:last])


def causal_batch(tokens: PackedTokens, index: Tensor, key: BatchKey) -> dict[str, Tensor]:
    """A batch of blocks: `input_ids`, `attention_mask`, `bytes`, `position_ids` and `target`, each int64 [B, L].

    `target` is the token itself, `IGNORED` where it bears no loss: at padding, and at the first token of a piece, which
    has no context. It is not shifted; the task does that. Where a position is 0 a piece begins, and no token attends to
    one before that.
    """
    batch = tokens.batch(index, key.length)
    target = batch.get("target", batch["input_ids"])
    return batch | {"target": target.masked_fill(batch["position_ids"] == 0, IGNORED)}
