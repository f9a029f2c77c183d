"""The tokens of another tokenizer for the pieces of documents that a student reads, and how far both correspond."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.data.blocks import Integers, PackedTokens, Pieces, causal_batch, ranges, sums_over
from distillery.data.documents import documents_of
from distillery.data.raw_data import Split
from distillery.data.sampler import BatchKey
from distillery.data.tokenizers import token_texts
from distillery.data.tokens import IGNORED, Tokens
from distillery.losses.byte_groups import TokenRows, shares

COUNTED = 1_000_000  # tokens on which it is counted how many correspond
PLACES = 8  # of a byte: itself, and those for tokens of no byte that follow it


def with_ends(splits: Mapping[str, Split]) -> None:
    """Add `ends` to the documents' tokens: where each ends in its document, in eighths of bytes.

    A token that stands for no byte, as the one that ends a text, takes an eighth, so that it has a place of its own and
    those of all later tokens stay as they are.
    """
    for split in splits.values():
        if isinstance(split.inputs, PackedTokens):  # a split without documents has no blocks
            _ends(split.inputs.tokens)


def _ends(tokens: Tokens) -> Integers:
    """The column `ends`, made once: splits often share their tokens."""
    if "ends" in tokens.columns:
        return tokens.columns["ends"].numpy()
    sizes = tokens.columns["bytes"].numpy().astype(np.int64)
    number = np.arange(len(sizes))
    begins = (tokens.starts[tokens.lengths > 0] if tokens.documents is None else tokens.documents).numpy()
    owner, seen = np.zeros_like(sizes), np.where(sizes > 0, number, -1)
    owner[begins] = begins
    seen[begins] = np.where(sizes[begins] > 0, begins, begins - 1)
    owner, seen = np.maximum.accumulate(owner), np.maximum.accumulate(seen)  # its document, the last token of a byte
    up_to = sizes.cumsum()
    ends = (up_to - (up_to - sizes)[owner]) * PLACES + np.minimum(number - seen, PLACES - 1)
    tokens.columns["ends"], tokens.padding["ends"] = torch.from_numpy(ends.astype(np.int32)), 0
    return tokens.columns["ends"].numpy()


def same_text(
    student: Mapping[str, Split], splits: Mapping[str, Split], stores: Mapping[str, Tokens]
) -> dict[str, Split]:
    """The samples of a student in other tokens.

    Args:
        student: its splits.
        splits: those of the texts.
        stores: the texts in the other tokens.

    Raises:
        UserError: the texts are not the same bytes in both.
    """
    found: dict[str, Split] = {}
    for stage, split in splits.items():
        blocks, tokens, inputs = student[stage].inputs, stores[stage], student[stage].inputs
        if isinstance(blocks, PackedTokens):
            documents = (documents_of(each, split.indices) for each in (blocks.tokens, tokens))
            pieces = _same_pieces(blocks, tokens, *documents)
            sizes = torch.from_numpy(np.add.reduceat(pieces.lengths, blocks.first[:-1]))
            inputs = replace(blocks, tokens=tokens, pieces=pieces, lengths=sizes)
        found[stage] = replace(student[stage], inputs=inputs)
    with_ends(found)
    return found


def _same_pieces(student: PackedTokens, tokens: Tokens, ours: Pieces, theirs: Pieces) -> Pieces:
    """The pieces of the blocks in other tokens.

    One begins with the last token that ends no later than the student's first one; neither bears loss. So every token
    but the first of a document bears loss at most once. One that reaches over the end of a piece is left to the next.

    Args:
        ours, theirs: the documents.
    """
    same = len(ours.starts) == len(theirs.starts) and theirs.lengths.all()
    bytes_of = [sums_over(each.columns["bytes"], at) for each, at in ((student.tokens, ours), (tokens, theirs))]
    if not same or (bytes_of[0] != bytes_of[1]).any():
        raise UserError(
            "The documents are not the same text for both tokenizers; different chat templates may be the reason. Set "
            "data.tokenizer to the teacher's, and train the student with it."
        )
    order = ranges(*theirs)
    keys = np.repeat(np.arange(len(theirs.starts)), theirs.lengths) << 32
    keys += _ends(tokens)[order]
    ends = _ends(student.tokens)
    document = np.searchsorted(ours.starts, student.pieces.starts, side="right") - 1
    begun, ended = (
        np.searchsorted(keys, (document << 32) + ends[student.pieces.starts + place], side="right")
        for place in (0, student.pieces.lengths - 1)
    )
    beginning = (theirs.lengths.cumsum() - theirs.lengths)[document]
    first = np.where(student.pieces.starts == ours.starts[document], beginning, np.maximum(begun - 1, beginning))
    return Pieces(order[first], np.maximum(ended - first, 1))


def correspondence(student: tuple[Any, Mapping[str, Split]], teacher: tuple[Any, Mapping[str, Split]]) -> Iterator[str]:
    """What is to be said of two tokenizers and of the blocks in their tokens."""
    ours, theirs = (token_texts(tokenizer) for tokenizer, _ in (student, teacher))
    yield f"{len({*ours} & {*theirs}):,} of its {len(theirs):,} tokens are also in the data's tokenizer"
    for stage, split in student[1].items():
        if not len(split.indices):
            continue
        blocks = (split.inputs, teacher[1][stage].inputs)
        some = torch.arange(len(split.inputs.lengths))[: max(1, COUNTED // int(split.inputs.lengths.max()))]
        rows = (
            next_tokens(causal_batch(each, some, BatchKey(0, [], int(each.lengths[some].max())))) for each in blocks
        )
        single, whole = shares(*rows)
        yield f"{stage}: {single:.1%} of the bytes are in one token of each, {whole:.1%} in groups that end together"


def several(
    own: Callable[..., Any], others: Mapping[str, tuple[Tensor, Callable[..., Any]]], index: Tensor, key: BatchKey
) -> dict[str, Tensor]:
    """A batch with the tokens of several tokenizers: those of the others by `<tokenizer>/<column>`.

    Args:
        own: makes the batch.
        others: of each other tokenizer the tokens of each sample, and what makes its columns.
    """
    batch: dict[str, Tensor] = own(index, key)
    for tokenizer, (lengths, columns_of) in others.items():
        columns = columns_of(index, key._replace(length=int(lengths[index].max())))
        batch |= {f"{tokenizer}/{name}": values for name, values in columns.items()}
    return batch


def next_tokens(batch: Mapping[str, Tensor]) -> TokenRows:
    """The tokens of a batch of blocks that bear loss, with their places in all blocks, which pieces keep apart."""
    piece = (batch["position_ids"] == 0).cumsum(1)
    block = torch.arange(len(piece), device=piece.device)[:, None]
    place = (block << 48) + (piece << 32) + batch["ends"]
    target = batch["target"][:, 1:]
    bears = target != IGNORED
    return TokenRows(target[bears], place[:, :-1][bears], place[:, 1:][bears])
