"""Texts that are samples by themselves: single ones, pairs, and lists of words with labels."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

from torch import Tensor

from distillery.data.raw_data import Split, Texts
from distillery.data.sampler import BatchKey
from distillery.data.tokens import CHUNK, IGNORED, Masking, Served, Tokenised, Tokens, token_batch, tokenised


@dataclass(frozen=True)
class Passages:
    """Each text, or pair of texts, is a sample; what does not fit is truncated.

    Args:
        tokenizer: of the texts.
        limit: tokens of a sample; None: no limit.
        masking: of tokens to be predicted; None: none.
    """

    tokenizer: Any
    limit: int | None
    masking: Masking | None

    unit = "texts"
    key = b""

    def chunks(self, texts: Texts, order: Sequence[int]) -> Iterator[list[int]]:
        for at in range(0, len(order), CHUNK):
            yield list(order[at : at + CHUNK])

    def tokenised(self, texts: Texts, positions: Sequence[int]) -> Tokenised:
        """The columns without the mask, which is all ones before padding."""
        first = [texts.first[position] for position in positions]
        second = None if texts.second is None else [texts.second[position] for position in positions]
        given = tokenised(self.tokenizer, first, second, None)
        samples = {name: given[name] for name in given if name != "attention_mask"}
        words = None if texts.labels is None else [given.word_ids(i) for i in range(len(first))]
        limit = self.limit
        longer = [i for i, ids in enumerate(given["input_ids"]) if limit is not None and len(ids) > limit]
        if longer:
            pairs = None if second is None else [second[i] for i in longer]
            cut = tokenised(self.tokenizer, [first[i] for i in longer], pairs, limit)
            for place, i in enumerate(longer):
                for name, values in samples.items():
                    values[i] = cut[name][place]
                if words is not None:
                    words[i] = cut.word_ids(place)
        if words is not None:
            assert texts.labels is not None
            samples["target"] = [
                _labels(of, texts.labels[position]) for of, position in zip(words, positions, strict=True)
            ]
        return Tokenised(samples, [positions[i] for i in longer])

    def served(self, name: str, splits: Mapping[str, Split], stores: Mapping[str, Tokens]) -> Served:
        """The splits; where tokens are masked, these are the labels of every text."""
        labelled = {stage: None if self.masking else split.labelled for stage, split in splits.items()}
        return Served(
            {stage: replace(split, inputs=stores[stage], labelled=labelled[stage]) for stage, split in splits.items()}
        )

    def batch_of(self, split: Split, seed: int | None) -> Callable[[Tensor, BatchKey], dict[str, Tensor]]:
        return partial(token_batch, split.inputs, self.masking, seed)


def _labels(words: list[int | None], labels: Any) -> list[int]:
    """The label of each token: the word's label for its first token, `IGNORED` for all others and special tokens."""
    before = chain([None], words)
    return [
        IGNORED if word is None or word == last else labels[word] for word, last in zip(words, before, strict=False)
    ]
