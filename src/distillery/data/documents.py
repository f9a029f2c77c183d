"""Documents for causal language models: tokens with the bytes that they stand for, served in blocks."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.data.blocks import Integers, Pieces, blocks_of, causal_batch, ranges
from distillery.data.raw_data import Split, Texts
from distillery.data.sampler import BatchKey
from distillery.data.tokenizers import text_sizes
from distillery.data.tokens import IGNORED, Served, Tokenised, Tokens, tokenised

CHARACTERS = 1_000_000  # of documents that are tokenised together: what a tokenizer says of them takes much memory


@dataclass(frozen=True)
class Documents:
    """Texts as whole documents, cut and packed into blocks, which are the samples.

    Args:
        tokenizer: of the documents.
        most: tokens of a block.
        pack: whether a block may have several pieces of documents.
        too_long: what becomes of documents that do not fit into a block.
    """

    tokenizer: Any
    most: int
    pack: bool
    too_long: Literal["truncate", "refuse", "split"]

    unit = "documents"

    @property
    def key(self) -> bytes:
        """What the tokens depend on besides the tokenizer and the texts."""
        return b""

    def chunks(self, texts: Texts, order: Sequence[int]) -> Iterator[list[int]]:
        """The positions `order` in parts of about `CHARACTERS` characters."""
        chunk: list[int] = []
        size = 0
        for position in order:
            chunk.append(position)
            size += len(texts.first[position])
            if size >= CHARACTERS:
                yield chunk
                chunk, size = [], 0
        if chunk:
            yield chunk

    def tokenised(self, texts: Texts, positions: Sequence[int]) -> Tokenised:
        """The columns of these documents, and which of them do not fit into a block."""
        first: Any = [texts.first[position] for position in positions]
        after = None if texts.completions is None else [texts.completions[position] for position in positions]
        columns = document_columns(self.tokenizer, first, after)
        longer = [at for at, ids in zip(positions, columns["input_ids"], strict=True) if len(ids) > self.most]
        return Tokenised(columns, longer)

    def served(self, name: str, splits: Mapping[str, Split], stores: Mapping[str, Tokens]) -> Served:
        """The splits in blocks.

        Raises:
            UserError: no token of a split bears loss.
        """
        found, remarks = dict[str, Split](), list[str]()
        for stage, split in splits.items():
            if not len(split.indices):
                found[stage] = replace(split, inputs=stores[stage])
                continue
            too_long = "split" if self.too_long == "refuse" else self.too_long  # none is too long
            documents = documents_of(stores[stage], split.indices)
            settings = f"{self.most} {self.pack} {too_long}".encode()
            identity = hashlib.sha256(stores[stage].identity + split.indices.numpy().tobytes() + settings).digest()
            made = blocks_of(stores[stage], documents, self.most, self.pack, too_long == "split", identity)
            samples = torch.arange(len(made.tokens.lengths))
            if not len(samples):
                raise UserError(f"'{name}': no token bears loss. {made.remark(stage)}")
            found[stage] = Split(made.tokens, torch.zeros_like(samples), samples)
            several = len(documents.starts) != len(split.indices)
            remarks.append(made.remark(stage, f" of {len(split.indices):,} {self.unit}" if several else ""))
        return Served(found, tuple(remarks))

    def batch_of(self, split: Split, seed: int | None) -> Callable[[Tensor, BatchKey], dict[str, Tensor]]:
        """Makes the inputs of a batch."""
        return partial(causal_batch, split.inputs)


def documents_of(tokens: Tokens, positions: Tensor) -> Pieces:
    """Where the documents of the texts at `positions` are among the tokens."""
    starts, lengths = tokens.starts[positions].numpy(), tokens.lengths[positions].numpy()
    if tokens.documents is None:
        return Pieces(starts, lengths)
    every = tokens.documents.numpy()
    first, last = np.searchsorted(every, starts), np.searchsorted(every, starts + lengths)
    sizes = np.diff(every, append=len(tokens.columns["input_ids"]))
    own = ranges(first, last - first)
    return Pieces(every[own], sizes[own])


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
    first, end = with_offsets(tokenizer, texts), tokenizer.eos_token_id
    if completions is None:
        return ended_columns(first, texts, tokenizer)
    found: dict[str, list[list[int]]] = {"input_ids": [], "bytes": [], "target": []}
    after = _with_bytes(with_offsets(tokenizer, completions, add_special_tokens=False), completions, tokenizer)
    for (prompt, before), (ids, sizes) in zip(_with_bytes(first, texts, tokenizer), after, strict=True):
        start = len(prompt) - (end is not None and prompt[-1:] == [end])  # a tokenizer may end each text itself
        last = [] if end is None else [end]
        found["input_ids"].append([*prompt[:start], *ids, *last])
        found["bytes"].append([*before[:start], *sizes, *(0 for _ in last)])
        found["target"].append([*(IGNORED for _ in range(start)), *ids, *last])
    return found


def ended_columns(given: Any, texts: Sequence[str], tokenizer: Any) -> dict[str, list[list[int]]]:
    """The columns of documents from what the tokenizer has given for their texts; see `document_columns`."""
    found: dict[str, list[list[int]]] = {"input_ids": [], "bytes": []}
    end = tokenizer.eos_token_id
    for ids, sizes in _with_bytes(given, texts, tokenizer):
        last = [] if end is None or ids[-1:] == [end] else [end]
        found["input_ids"].append([*ids, *last])
        found["bytes"].append([*sizes, *(0 for _ in last)])
    return found


def _with_bytes(given: Any, texts: Sequence[str], tokenizer: Any) -> Iterator[tuple[list[int], list[int]]]:
    """The tokens of each text, and the bytes that each stands for, from what the tokenizer has given for them."""
    own = text_sizes(tokenizer)
    for text, ids, encoding in zip(texts, given["input_ids"], given.encodings, strict=True):
        added = np.array(encoding.special_tokens_mask, dtype=bool)
        sizes = np.zeros(len(ids), dtype=np.int64)
        sizes[~added] = token_bytes(text, ends_of(encoding)[~added], own[ids][~added])
        yield ids, sizes.tolist()


def with_offsets(tokenizer: Any, texts: Sequence[str], **options: Any) -> Any:
    """The output of a tokenizer that tells where its tokens are in the texts.

    Raises:
        UserError: it does not.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"data.pack: {type(tokenizer).__name__} does not tell which part of a text each token covers, which bits "
            "per byte need. Choose a tokenizer with a tokenizer.json."
        )
    return tokenised(tokenizer, texts, None, None, **options)


def ends_of(encoding: Any) -> Integers:
    """Where each token ends in the text, in characters [N]."""
    return np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)[:, 1]


def token_bytes(text: str, ends: Integers, own: Integers | None = None) -> Integers:
    """How many bytes of UTF-8 each token stands for: at least one, if there are as many. They add up to the text's.

    A token reaches from the end of the one before it to its own: blanks that a tokenizer leaves out of its offsets
    belong to the token that follows. Tokens that share a character share out its bytes; each has its own if these are
    known.

    Args:
        ends: where each token ends in the text, in characters [N].
        own: the bytes that each token stands for in the vocabulary. They are used if they agree with `ends`, as they do
            where the tokenizer changes no characters.
    """
    if not len(ends):
        return ends
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    sizes = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    reached = np.concatenate([[0], sizes.cumsum()])
    total, number = int(reached[-1]), np.arange(len(ends))
    if own is not None:
        up_to = own.cumsum()
        up_to -= int(up_to[-1] == total + 1)  # a blank that the tokenizer puts in front
        after = (reached[np.maximum(ends - 1, 0)] < up_to) | (up_to == 0)
        if up_to[-1] == total and (after & (up_to <= reached[ends])).all():
            return np.diff(up_to, prepend=0)
    bounds = np.maximum.accumulate(reached[ends])
    bounds[-1] = total
    bounds = np.minimum.accumulate((bounds - number)[::-1])[::-1] + number  # leave a byte to each of those that follow
    bounds = np.maximum.accumulate(np.maximum(bounds, 1) - number) + number  # and have one
    return np.diff(np.minimum(bounds, total), prepend=0)
