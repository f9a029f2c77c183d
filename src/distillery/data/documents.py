"""Documents for causal language models: tokens with the bytes that they stand for, cut and packed into blocks."""

import hashlib
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillery.core.errors import UserError
from distillery.data.sampler import BatchKey
from distillery.data.tokens import IGNORED, Tokens, tokenised

Integers = NDArray[np.int64]
CHARACTERS = 1_000_000  # of documents that are tokenised together: what a tokenizer says of them takes much memory


def document_chunks(texts: Sequence[str], order: Sequence[int]) -> Iterator[list[int]]:
    """The positions `order` in parts of about `CHARACTERS` characters."""
    chunk: list[int] = []
    size = 0
    for position in order:
        chunk.append(position)
        size += len(texts[position])
        if size >= CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def document_columns(
    tokenizer: Any, texts: Sequence[str], completions: Sequence[str] | None = None
) -> dict[str, list[list[int]]]:
    """`input_ids` and `bytes` of each whole document.

    A document ends with the tokenizer's end-of-text token, if there is one. `bytes` is the number of UTF-8 bytes that a
    token stands for, 0 for tokens that are no text; those of a document add up to its own.

    Args:
        completions: what follows each text, which is then a prompt. Both are tokenised by themselves, so that the
            tokens of a prompt do not depend on what follows. Only what follows bears loss: `target`, besides.

    Raises:
        UserError: a tokenizer written in Python, which does not tell what part of the text a token covers.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"data.pack: {type(tokenizer).__name__} does not tell which part of a text each token covers, which bits "
            "per byte need. Choose a tokenizer with a tokenizer.json."
        )
    end = tokenizer.eos_token_id
    found: dict[str, list[list[int]]] = {"input_ids": [], "bytes": []}
    if completions is not None:
        found["target"] = []
        for (prompt, before), (ids, sizes) in zip(
            _tokens_with_bytes(tokenizer, texts), _tokens_with_bytes(tokenizer, completions, special=False), strict=True
        ):
            start = len(prompt) - (end is not None and prompt[-1:] == [end])  # a tokenizer may end each text itself
            last = [] if end is None else [end]
            found["input_ids"].append([*prompt[:start], *ids, *last])
            found["bytes"].append([*before[:start], *sizes, *(0 for _ in last)])
            found["target"].append([*(IGNORED for _ in range(start)), *ids, *last])
        return found
    for ids, sizes in _tokens_with_bytes(tokenizer, texts):
        ended = end is None or (len(ids) > 0 and ids[-1] == end)
        found["input_ids"].append(ids if ended else [*ids, end])
        found["bytes"].append([*sizes, *([] if ended else [0])])
    return found


def _tokens_with_bytes(
    tokenizer: Any, texts: Sequence[str], special: bool = True
) -> Iterator[tuple[list[int], list[int]]]:
    """The tokens of each text, and the bytes that each stands for; `special`: with those that the tokenizer adds."""
    given = tokenised(tokenizer, texts, None, None) if special else tokenizer(list(texts), add_special_tokens=False)
    for text, ids, encoding in zip(texts, given["input_ids"], given.encodings, strict=True):
        added = np.array(encoding.special_tokens_mask, dtype=bool)
        sizes = np.zeros(len(ids), dtype=np.int64)
        sizes[~added] = token_bytes(text, np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)[~added, 1])
        yield ids, sizes.tolist()


def token_bytes(text: str, ends: Integers) -> Integers:
    """How many bytes of UTF-8 each token stands for: at least one, if there are as many. They add up to the text's.

    A token reaches from the end of the one before it to its own: blanks that a tokenizer leaves out of its offsets
    belong to the token that follows. Tokens that share a character share out its bytes.

    Args:
        ends: where each token ends in the text, in characters [N].
    """
    if not len(ends):
        return ends
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    sizes = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    reached = np.concatenate([[0], sizes.cumsum()])
    total, number = int(reached[-1]), np.arange(len(ends))
    bounds = np.maximum.accumulate(reached[ends])
    bounds[-1] = total
    bounds = np.minimum.accumulate((bounds - number)[::-1])[::-1] + number  # leave a byte to each of those that follow
    bounds = np.maximum.accumulate(np.maximum(bounds, 1) - number) + number  # and have one
    return np.diff(np.minimum(bounds, total), prepend=0)


class Pieces(NamedTuple):
    """Parts of documents that a network reads at once, in the order of the documents: [P] each."""

    starts: Integers  # in the concatenated tokens
    lengths: Integers


def cut(starts: Integers, lengths: Integers, most: int, rest: bool = True) -> Pieces:
    """Documents in pieces of at most `most` tokens, that overlap by one token.

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


@dataclass(frozen=True)
class Blocks:
    """The documents of a split as a network reads them.

    Attributes:
        tokens: of the blocks, with `position_ids`, which begin anew at each piece.
        documents, longer: how many documents there are, and how many have more tokens than fit into a block.
        read, losses: how many different tokens of the documents are in the blocks, and how many of these bear loss.
        bytes: of the documents.
        left_out: how many tokens are in no block.
    """

    tokens: Tokens
    documents: int
    longer: int
    read: int
    losses: int
    bytes: int
    left_out: int

    def remark(self, split: str, most: int) -> str:
        """What is to be said of the blocks; `most`: the tokens that fit into one."""
        blocks, total = len(self.tokens.lengths), self.read + self.left_out
        padding = 1 - int(self.tokens.lengths.sum()) / max(1, most * blocks)
        said = (
            f"{split}: {self.documents:,} documents, {total:,} tokens ({total / max(1, self.bytes):.3f} per byte), in "
            f"{blocks:,} blocks of {most:,} ({padding:.1%} empty); {self.losses / max(1, self.read):.2%} of the tokens "
            "bear loss"
        )
        if self.left_out:
            said += f"; {self.longer:,} documents are longer and truncated, by {self.left_out:,} tokens in all"
        elif self.longer:
            said += f"; {self.longer:,} documents are longer and cut into pieces that overlap by one token"
        return said


def blocks_of(
    tokens: Tokens, documents: Tensor, most: int, pack: bool, too_long: Literal["truncate", "split"]
) -> Blocks:
    """The blocks of some documents, numbered from 0.

    Args:
        tokens: of all documents: `input_ids` and `bytes`, and `target` if not every token bears loss.
        documents: their positions, [D].
        most: tokens of a block.
        pack: whether a block may have several pieces; False: one in each.
        too_long: what becomes of the rest of a longer document: dropped, or in pieces of its own.
    """
    starts, lengths = tokens.starts[documents].numpy(), tokens.lengths[documents].numpy()
    pieces = cut(starts, lengths, most, rest=too_long == "split")
    block = best_fit(pieces.lengths, most) if pack else np.arange(len(pieces.lengths))
    order = np.argsort(block, kind="stable")
    first, size = pieces.starts[order], pieces.lengths[order]
    positions = np.arange(size.sum()) - np.repeat(size.cumsum() - size, size)
    places = torch.from_numpy(np.repeat(first, size) + positions)
    columns = {name: column[places] for name, column in tokens.columns.items()}
    columns["position_ids"] = torch.from_numpy(positions.astype(np.int32))
    held = torch.from_numpy(np.bincount(block, weights=pieces.lengths).astype(np.int64))
    settings = f"{most} {pack} {too_long}".encode()
    packed = Tokens(
        columns,
        held.cumsum(0) - held,
        held,
        {**tokens.padding, "position_ids": 0},
        hashlib.sha256(tokens.identity + documents.numpy().tobytes() + settings).digest(),
    )
    bearing = columns["position_ids"] > 0
    if "target" in columns:
        bearing &= columns["target"] != IGNORED
    up_to = np.concatenate([[0], tokens.columns["bytes"].numpy().cumsum(dtype=np.int64)])
    return Blocks(
        packed,
        documents=len(documents),
        longer=int((lengths > most).sum()),
        read=int((pieces.lengths - 1).sum() + (lengths > 1).sum()),
        losses=int(bearing.sum()),
        bytes=int((up_to[starts + lengths] - up_to[starts]).sum()),
        left_out=int(np.maximum(lengths - most, 0).sum()) if too_long == "truncate" else 0,
    )


def causal_batch(tokens: Tokens, index: Tensor, key: BatchKey) -> dict[str, Tensor]:
    """A batch of blocks: `input_ids`, `attention_mask`, `bytes`, `position_ids` and `target`, each int64 [B, L].

    `target` is the token itself, `IGNORED` where it bears no loss: at padding, and at the first token of a piece, which
    has no context. It is not shifted; the task does that. Where a position is 0 a piece begins, and no token attends to
    one before that.
    """
    batch = tokens.batch(index, key.length)
    target = batch.get("target", batch["input_ids"])
    return batch | {"target": target.masked_fill(batch["position_ids"] == 0, IGNORED)}
