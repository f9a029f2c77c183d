"""Tokenises texts, some at a time, or takes what an earlier run has kept of them."""

import hashlib
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor

from distillery.data.raw_data import Texts
from distillery.data.token_cache import stored_tokens, tokenizer_key
from distillery.data.tokenizers import padding_token, written
from distillery.data.tokens import IGNORED, TextSamples, Tokens

FORMAT = 2  # of what is kept: another number where tokens of the same texts became others
BAR = 20  # chunks from which tokenising shows a progress bar


def tokens_of(
    samples: TextSamples, texts: Texts, indices: Tensor, tokenizer: Any, name: str, limit: int | None
) -> tuple[Tokens, list[int]]:
    """The tokens of the texts at `indices`, and the positions of those that have more than fit into a sample.

    Args:
        samples: what becomes of the texts.
        name: the tokenizer's.
        limit: tokens of a sample; None: no limit.
    """
    content = texts.content()
    completions = b"" if texts.completions is None else b"completions"
    kind = f"{FORMAT} {samples.unit}".encode() + completions + samples.key
    key = tokenizer_key(tokenizer, limit, content, indices.numpy().tobytes(), kind)
    identity = hashlib.sha256(content + f"{written(tokenizer, name)} {limit}".encode() + samples.key).digest()
    found = stored_tokens(key, partial(_tokenised, samples, texts, indices.tolist()))
    longer = found.pop("longer").tolist()
    lengths = torch.zeros(len(texts), dtype=torch.int64)
    lengths[indices] = found.pop("lengths").long()
    starts = torch.zeros(len(texts), dtype=torch.int64)
    starts[indices] = lengths[indices].cumsum(0) - lengths[indices]
    documents = found.pop("documents").long()
    begins = documents.cumsum(0) - documents if len(documents) else None
    padding = {"input_ids": padding_token(tokenizer), "target": IGNORED}
    return Tokens(found, starts, lengths, {name: padding.get(name, 0) for name in found}, identity, begins), longer


def _tokenised(samples: TextSamples, texts: Texts, order: list[int]) -> Iterator[dict[str, NDArray[np.int32]]]:
    """The columns of some texts after another, and the positions of the `longer` ones.

    `lengths` are those of the texts, and `documents` of the documents that these consist of, if not of one.
    """
    none = np.zeros(0, dtype=np.int32)
    yield {"lengths": none, "documents": none, "longer": none}  # a split may be empty
    chunks = [*samples.chunks(texts, order)]
    silent = len(chunks) < BAR or not Console().is_terminal
    for positions in track(chunks, "Tokenising", transient=True, disable=silent):
        values, longer, counts = samples.tokenised(texts, positions)
        columns = {name: np.fromiter(chain.from_iterable(each), dtype=np.int32) for name, each in values.items()}
        lengths = np.array([len(ids) for ids in values["input_ids"]], dtype=np.int32)
        documents = none if counts is None else lengths
        if counts is not None:
            lengths = np.add.reduceat(lengths, np.cumsum(counts, dtype=np.int64) - counts, dtype=np.int32)
        yield {**columns, "lengths": lengths, "documents": documents, "longer": np.array(longer, dtype=np.int32)}
