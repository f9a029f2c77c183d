"""Tokenised texts in flat tensors, the batches made of them, and the masking of tokens."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from distillery.core.random import uniforms
from distillery.data.raw_data import Split, Texts
from distillery.data.sampler import BatchKey

IGNORED = -100  # the target of a token or pixel that does not count, as in PyTorch's cross-entropy
CHUNK = 1000  # texts per call of the tokenizer


@dataclass(frozen=True)
class Tokens:
    """The concatenated tokens of some samples: those of the sample at position p begin at `starts[p]`.

    `columns` holds `input_ids`, whatever else the tokenizer returns per token (`token_type_ids`), and `target` if the
    words have labels. `lengths` is 0 at positions that were not tokenised. `identity` identifies the texts and the
    tokenizer.
    """

    columns: dict[str, Tensor]  # int64 or int32 [tokens]
    starts: Tensor  # int64 [N]
    lengths: Tensor  # int64 [N]
    padding: dict[str, int]  # the padding value of each column
    identity: bytes
    documents: Tensor | None = None  # where the documents begin that a sample consists of, ascending; None: each is one

    def content(self) -> bytes:
        """Bytes that identify the tokens, for the fingerprint."""
        return self.identity

    def batch(self, index: Tensor, length: int) -> dict[str, Tensor]:
        """The columns of the samples `index` [B], padded to `length`, and `attention_mask`: each int64 [B, length]."""
        lengths = self.lengths[index]
        mask = torch.arange(length) < lengths[:, None]
        return self.at((self.starts[index][:, None] + torch.arange(length))[mask], mask)

    def at(self, places: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """The columns at `places`, put where `mask` [B, L] is True, and `attention_mask`: each int64 [B, L]."""
        padded = {
            name: torch.full(mask.shape, self.padding[name]).masked_scatter(mask, column[places].long())
            for name, column in self.columns.items()
        }
        return {"input_ids": padded.pop("input_ids"), "attention_mask": mask.long(), **padded}


def token_batch(
    tokens: Tokens, masking: "Masking | None", seed: int | None, index: Tensor, key: BatchKey
) -> dict[str, Tensor]:
    """A batch of tokenised texts, from the positions [B] and the `BatchKey`.

    Without `seed`, as in evaluation, every epoch masks the same tokens.
    """
    batch = tokens.batch(index, key.length)
    seed, epoch = (0, 0) if seed is None else (seed, key.epoch)
    return batch if masking is None else masking(batch, uniforms(seed, epoch, index, 0, 3 * key.length))


@dataclass(frozen=True)
class Masking:
    """BERT's masking (Devlin et al. 2019, section 3.1): selects the tokens to predict and replaces most of them.

    Each token that is not special is selected with probability `share`, and at least one in each text. Of those,
    80 % become `mask_id`, 10 % a random token, and 10 % stay. The draw is a pure function of the uniform numbers:
    different in each epoch (RoBERTa's dynamic masking), the same in a resumed run.
    """

    share: float
    mask_id: int
    vocab_size: int
    special_ids: tuple[int, ...]

    def __call__(self, batch: dict[str, Tensor], uniform: Tensor) -> dict[str, Tensor]:
        """Adds `target` [B, L], -100 for tokens not selected. `uniform` [B, 3·L] in [0, 1): three numbers per token."""
        ids = batch["input_ids"]
        choice, kind, which = uniform.view(*ids.shape, 3).unbind(-1)
        choice = choice.masked_fill(
            torch.isin(ids, torch.tensor(self.special_ids)) | (batch["attention_mask"] == 0), 2.0
        )
        chosen = choice < self.share
        chosen |= (choice == choice.amin(1, keepdim=True)) & (choice < 1)
        random = (which * self.vocab_size).long()
        seen = torch.where(kind < 0.8, self.mask_id, torch.where(kind < 0.9, random, ids))
        return batch | {"input_ids": torch.where(chosen, seen, ids), "target": torch.where(chosen, ids, IGNORED)}


def tokenised(
    tokenizer: Any, texts: Sequence[Any], pairs: Sequence[str] | None, length: int | None, **options: Any
) -> Any:
    """The tokenizer's output for texts (or lists of words), truncated to `length` tokens unless that is None."""
    words = {} if isinstance(texts[0], str) else {"is_split_into_words": True}
    cut = {} if length is None else {"truncation": True, "max_length": length}
    return tokenizer(list(texts), list(pairs) if pairs is not None else None, verbose=False, **words, **cut, **options)


class Tokenised(NamedTuple):
    """Some texts in tokens."""

    columns: dict[str, list[list[int]]]  # `input_ids` and more, of each document
    longer: list[int]  # the positions of the texts that have more tokens than fit into a sample
    documents: list[int] | None = None  # of how many documents each text consists; None: of one


class Served(NamedTuple):
    """The splits as they are served, and remarks on how their samples were made."""

    splits: dict[str, Split]
    remarks: tuple[str, ...] = ()


class TextSamples(Protocol):
    """What becomes of texts: how they are tokenised, and which samples are made of the tokens."""

    @property
    def unit(self) -> str:
        """What the texts are called."""

    @property
    def key(self) -> bytes:
        """What the tokens depend on besides the tokenizer and the texts."""

    def chunks(self, texts: Texts, order: Sequence[int]) -> Iterator[list[int]]:
        """The positions `order` in parts that are tokenised together."""

    def tokenised(self, texts: Texts, positions: Sequence[int]) -> Tokenised:
        """The texts at these positions in tokens."""

    def served(self, name: str, splits: Mapping[str, Split], stores: Mapping[str, Tokens]) -> Served:
        """The splits with their samples, made of the tokens of their texts."""

    def batch_of(self, split: Split, seed: int | None) -> Callable[[Tensor, BatchKey], dict[str, Tensor]]:
        """Makes the inputs of a batch; training masks other tokens in each epoch, as `seed` says."""
