"""The LightningDataModule of texts."""

import hashlib
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, Self

import torch
from pydantic import NonNegativeInt
from torch import Tensor
from transformers.tokenization_utils_base import LARGE_INTEGER

from distillery.core.errors import UserError
from distillery.data.chat_template import ChatTemplate, chat_template
from distillery.data.conversations import Conversations, spoken
from distillery.data.documents import Documents
from distillery.data.module import STAGES, Data, Stage
from distillery.data.other_tokens import correspondence, same_text, several, with_ends
from distillery.data.passages import Passages
from distillery.data.questions import Question, Questions
from distillery.data.raw_data import Split, Texts
from distillery.data.sampler import BatchKey
from distillery.data.text_tokens import tokens_of
from distillery.data.tokenizers import load_tokenizer, padding_token, written
from distillery.data.tokens import CHUNK, Masking, TextSamples, Tokens


@dataclass(eq=False, repr=False)
class TextData(Data):
    """Serves `input_ids`, `attention_mask`, `token_type_ids` (if the tokenizer has them) [B,L], `target`, `index`.

    L is the length of the longest text of the global batch. If words have labels or tokens are masked, `target` is
    [B,L], with -100 for tokens that do not count (only the first token of a word counts).

    For causal language models (`pack`) the texts are whole documents, and a sample is a block of tokens with
    `position_ids` and `bytes` besides, see `causal_batch`. `index` is the number of a block in its split: the same for
    the same documents, tokenizer and `max_length`. `train_size` counts documents.

    Args, besides those of `Data`:
        tokenizer: a name on the hub, or a folder.
        max_length: maximum number of tokens per sample; None: the number of positions of the tokenizer's model.
        too_long: whether longer samples are truncated, and counted in the remarks, refused, or (with `pack`) split into
            several samples.
        bucket: how many batches are sorted by length together (see `SeededBatchSampler`); 0: none.
        mask: the fraction of tokens to mask and predict (task=masked_lm); None: no masking.
        pack: whether several documents share a block (task=causal_lm), none of which attends to another; False: each
            sample is of one document. None: the texts are for other tasks.
        doc_stride: how many tokens two windows of a long context share (task=question_answering).
        template: the chat template of conversations, or a file with it; None: the tokenizer's own.
        template_kwargs: what the template reads besides the messages, as `enable_thinking`; None: nothing.
        think: whether think-spans of conversations bear loss.
    """

    kind = "texts"

    tokenizer: str
    max_length: int | None = 128
    too_long: Literal["truncate", "refuse", "split"] = "truncate"
    bucket: NonNegativeInt = 50
    mask: float | None = None
    pack: bool | None = None
    doc_stride: NonNegativeInt = 128
    template: str | None = None
    template_kwargs: dict[str, Any] | None = None
    think: Literal["keep", "mask"] = "keep"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._student: TextData | None = None  # whose blocks these are in other tokens

    @cached_property
    def loaded_tokenizer(self) -> Any:
        return load_tokenizer(self.tokenizer, "data.tokenizer")

    @cached_property
    def limit(self) -> int | None:
        """Maximum number of tokens per sample; None: no limit, as the tokenizer knows none of its model."""
        if self.max_length is not None:
            special = self.loaded_tokenizer.num_special_tokens_to_add(pair=True)
            if self.max_length <= special:
                raise UserError(
                    f"data.max_length={self.max_length}: {special} of these are special tokens, which leaves none for "
                    "the text. Set it higher, or to null for as many as the model has positions."
                )
            return self.max_length
        positions: int = self.loaded_tokenizer.model_max_length
        return positions if positions < LARGE_INTEGER else None

    @property
    def vocab_size(self) -> int:
        return len(self.loaded_tokenizer)

    @cached_property
    def others(self) -> dict[str, Self]:
        """The same texts for networks with other tokenizers, by the tokenizer, see `add_tokenizer`."""
        return {}

    def add_tokenizer(self, name: str) -> Self:
        """Serve each batch with the tokens of this tokenizer, too, as `<name>/input_ids` and so on.

        Returns: the same texts with that tokenizer alone.
        """
        if name not in self.others:
            _ = self.raw  # to be read once
            other = copy(self)
            for cached in ("loaded_tokenizer", "limit", "masking", "samples", "splits", "fingerprint", "others"):
                other.__dict__.pop(cached, None)
            other.tokenizer = name
            if self.pack is not None:
                other._student = self
                with_ends(self.splits)
            self.others[name] = other
        return self.others[name]

    def training_split(self) -> Split:
        """The training texts, not tokenised."""
        return self._subset(self._validation()[0])

    def training_texts(self) -> list[str]:
        """The training texts, which need no tokenizer; of conversations what is said in them."""
        train = self.training_split()
        texts: Texts = train.inputs
        chosen: list[Any] = [texts.first[position] for position in train.indices.tolist()]
        if texts.completions is not None:
            return [text + texts.completions[at] for text, at in zip(chosen, train.indices.tolist(), strict=True)]
        return [spoken(text) for text in chosen] if texts.conversations else chosen

    @property
    def classes(self) -> tuple[str, ...]:
        """Those of the texts. Documents have none, whatever labels their source has."""
        return super().classes if self.pack is None else ()

    @property
    def remarks(self) -> tuple[str, ...]:
        _ = self.splits  # tokenises the texts, which shows the ones that are too long
        found = list(self._cut)
        if self.loaded_tokenizer.pad_token_id is None:
            padding = padding_token(self.loaded_tokenizer)
            found.append(f"the tokenizer has no padding token: texts are padded with token {padding}")
        for name, other in self.others.items():
            _ = other.splits
            found.append(f"each text has the tokens of {name}, too: a teacher's tokenizer")
            said = list(other._cut)
            if self.pack is not None:
                said += correspondence(*((each.loaded_tokenizer, each.splits) for each in (self, other)))
            found += [f"tokenizer {name}: {remark}" for remark in said]
        return (*super().remarks, *found)

    @property
    def questions(self) -> Sequence[Question]:
        """The questions that `question` numbers in batches; none, if the texts are others."""
        _ = self.splits
        return self.samples.asked if isinstance(self.samples, Questions) else ()

    @property
    def rendered_by(self) -> ChatTemplate | None:
        """The chat template of conversations; None: the texts are others."""
        return self.samples.template if isinstance(self.samples, Conversations) else None

    @property
    def input(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer}

    def seen_by_teacher(self, tokenizer: str | None = None) -> dict[str, str]:
        if tokenizer in self.others:
            return self.others[tokenizer].seen_by_teacher()
        vocabulary = written(self.loaded_tokenizer, self.tokenizer)
        return {
            "tokenizer": hashlib.sha256(vocabulary.encode()).hexdigest(),
            "chat template": hashlib.sha256(self.samples.key).hexdigest(),
            "layout": f"max_length={self.limit} pack={self.pack} too_long={self.too_long}",
            **super().seen_by_teacher(),
        }

    @property
    def varies(self) -> str | None:
        return None if self.mask is None else "mask"

    def served(self, splits: dict[str, Split]) -> dict[str, Split]:
        """The splits with their texts tokenised, each text once."""
        texts: Texts = self.raw.train.inputs
        self._longer: list[int] = []
        self._cut: tuple[str, ...] = ()
        if all(split.inputs is texts for split in splits.values()):
            every = torch.cat([split.indices for split in splits.values()])
            stores = dict.fromkeys(splits, self._tokens(texts, every))
        else:
            stores = {stage: self._tokens(split.inputs, split.indices) for stage, split in splits.items()}
        if self._student is not None:
            found = same_text(self._student.splits, splits, stores)
            longest = [int(split.inputs.pieces.lengths.max()) for split in found.values() if len(split.indices)]
            self.limit = max(longest)
            return found
        if self._longer:
            self._report_too_long(sum(len(split.indices) for split in splits.values()))
        found, remarks = self.samples.served(self.raw.name, splits, stores)
        self._cut += remarks
        return found

    @cached_property
    def samples(self) -> TextSamples:
        """What becomes of the texts.

        Raises:
            UserError: settings of documents without `pack`, or some that it excludes.
        """
        texts: Texts = self.raw.train.inputs
        if self.pack is None:
            if self.too_long == "split":
                raise UserError("data.too_long=split is for causal language models: set data.pack, or truncate.")
            if texts.answers is not None:
                if self.limit is None:
                    raise UserError("data.max_length=null: for questions, set it to a window's tokens, such as 384.")
                return Questions(self.loaded_tokenizer, self.limit, self.doc_stride)
            if texts.completions is not None or texts.conversations:
                what = "conversations" if texts.conversations else "prompts and completions"
                raise UserError(f"'{self.raw.name}' has {what}, for task=causal_lm: set data.pack.")
            return Passages(self.loaded_tokenizer, self.limit, self.masking)
        if self.mask is not None:
            raise UserError(f"data.pack={self.pack} and data.mask={self.mask} exclude each other: set one to null.")
        if texts.second is not None or texts.labels is not None:
            raise UserError("data.pack is for plain documents, and these texts are pairs, or lists of words.")
        if self.limit is None or self.limit < 2:
            raise UserError(
                f"data.max_length={self.max_length}: with data.pack it is the number of tokens in a block, 2 or more."
            )
        settings = (self.loaded_tokenizer, self.limit, self.pack, self.too_long)
        if not texts.conversations:
            return Documents(*settings)
        template = chat_template(self.loaded_tokenizer, self.template, self.template_kwargs)
        return Conversations(*settings, template, self.think)

    def inputs_of(self, stage: Stage) -> Callable[..., dict[str, Tensor]]:
        own = self.samples.batch_of(self.splits[stage], self.seed if stage == "train" else None)
        if not self.others:
            return own
        others = {
            name: (other.splits[stage].inputs.lengths, other.samples.batch_of(other.splits[stage], None))
            for name, other in self.others.items()
        }
        return partial(several, own, others)

    @cached_property
    def masking(self) -> Masking | None:
        """The masking of tokens; None: they are not masked."""
        if self.mask is None:
            return None
        if not 0 < self.mask < 1:
            raise UserError(
                f"data.mask={self.mask}: the fraction of tokens to predict must be between 0 and 1; BERT masks 0.15."
            )
        tokenizer = self.loaded_tokenizer
        if tokenizer.mask_token_id is None:
            raise UserError(
                f"data.mask={self.mask}: the tokenizer {self.tokenizer} has no mask token. Choose the tokenizer "
                "of a masked language model, such as BERT. For a causal one set data.mask=null data.pack=true."
            )
        return Masking(self.mask, tokenizer.mask_token_id, self.vocab_size, tuple(tokenizer.all_special_ids))

    def order(self, stage: Stage) -> dict[str, Any]:
        return {"lengths": self.splits[stage].inputs.lengths, "bucket": self.bucket}

    def example(self, samples: int = 8, stage: Stage = "train") -> dict[str, Tensor]:
        """Samples of the split's median length, so that measurements on them do not depend on the order."""
        indices = self.splits[stage].indices
        middle = len(indices) // 2
        ordered = indices[self.splits[stage].inputs.lengths[indices].argsort(stable=True)]
        return self._batch(stage, ordered[max(0, middle - samples + 1) : middle + 1])

    def word_counts(self) -> Tensor:
        tokens, counts = self.splits["train"].inputs, torch.zeros(self.vocab_size, dtype=torch.int64)
        for indices in self.splits["train"].indices.split(CHUNK):  # padding all at once would take gigabytes
            words = tokens.batch(indices, int(tokens.lengths[indices].max()))
            counts += words["input_ids"][words["attention_mask"] > 0].bincount(minlength=self.vocab_size)
        return counts

    def longest(self) -> dict[str, Tensor]:
        """A batch of one: the longest text of all splits."""
        longest = {stage: int(self._lengths(stage).max()) for stage in STAGES if self.sizes[stage]}
        stage = max(longest, key=lambda stage: longest[stage])
        return self._batch(stage, self.splits[stage].indices[self._lengths(stage).argmax()][None])

    def used_lengths(self) -> Tensor:
        """The number of tokens of each text in all splits."""
        return torch.cat([self._lengths(stage) for stage in STAGES])

    def _lengths(self, stage: Stage) -> Tensor:
        lengths: Tensor = self.splits[stage].inputs.lengths[self.splits[stage].indices]
        return lengths

    def _batch(self, stage: Stage, positions: Tensor) -> dict[str, Tensor]:
        longest = int(self.splits[stage].inputs.lengths[positions].max())
        return self.dataset(stage)[BatchKey(0, positions.tolist(), longest)]

    def _tokens(self, texts: Texts, indices: Tensor) -> Tokens:
        tokens, longer = tokens_of(self.samples, texts, indices, self.loaded_tokenizer, self.tokenizer, self.limit)
        self._longer += longer
        return tokens

    def _report_too_long(self, samples: int) -> None:
        found = f"{len(self._longer):,} of {samples:,} {self.samples.unit} have more than {self.limit} tokens"
        if self.too_long == "refuse":
            raise UserError(
                f"{found}, for instance the one at position {self._longer[0]}. Set data.max_length higher (the model "
                "must have as many positions), or truncate them with data.too_long=truncate."
            )
        if self.pack is None:  # blocks say it themselves
            self._cut = (f"{found}: truncated (data.max_length)",)
