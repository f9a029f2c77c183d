"""Questions about contexts in which their answers stand: each in one or more windows of tokens."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.data.raw_data import Split, Texts
from distillery.data.sampler import BatchKey
from distillery.data.tokens import CHUNK, IGNORED, Masking, Served, Tokenised, Tokens, token_batch

# In `target`: what a token is that may be chosen. All others are `IGNORED`.
NEITHER, START, END, BOTH = range(4)


class Question(NamedTuple):
    """The context of a question, and its right answers; none if it has no answer."""

    context: str
    answers: tuple[str, ...]


class Asked(list[Question]):
    """Questions by their number. It is shown as their number alone, since their texts may be large."""

    def __repr__(self) -> str:
        return f"{len(self)} questions"


@dataclass
class Questions:
    """Windows of question and context, which are the samples; a long context has several, which overlap.

    A window has, beside its tokens, the columns `begin` and `end` [B,L]: which characters of the context each token
    stands for (0 and 0 outside of the context); and `target` [B,L]: where the first answer starts and ends (`START`,
    `END`, `BOTH`), `NEITHER` at other tokens of the context, and `IGNORED` at all that may not be chosen. Where the
    window does not hold the whole answer, that is the special token at its beginning (BERT's [CLS]), as in Devlin et
    al. 2019, section 4.3. `question` [B] is the number of the question in `asked`.

    Args:
        tokenizer: a fast one, which says where tokens stand in the text.
        limit: tokens of a window.
        stride: tokens that two windows share.
    """

    tokenizer: Any
    limit: int
    stride: int
    asked: Asked = field(default_factory=Asked)

    unit = "questions"

    @property
    def key(self) -> bytes:
        """What the tokens depend on besides the tokenizer and the texts."""
        return f"windows {self.stride}".encode()

    def chunks(self, texts: Texts, order: Sequence[int]) -> Iterator[list[int]]:
        for at in range(0, len(order), CHUNK):
            yield list(order[at : at + CHUNK])

    def tokenised(self, texts: Texts, positions: Sequence[int]) -> Tokenised:
        """The columns of the windows, and how many each question has.

        Raises:
            UserError: a question leaves too little room for its context.
        """
        assert texts.second is not None
        assert texts.answers is not None
        questions = [str(texts.first[position]) for position in positions]
        room = self.limit - self.tokenizer.num_special_tokens_to_add(pair=True) - self.stride
        for question, ids in zip(questions, self.tokenizer(questions, add_special_tokens=False).input_ids, strict=True):
            if len(ids) >= room:
                raise UserError(
                    f"data.max_length={self.limit} data.doc_stride={self.stride}: the question {question[:60]!r} has "
                    f"{len(ids)} tokens, which leaves no room in a window for its context. Set max_length "
                    "higher, or doc_stride lower."
                )
        given = self.tokenizer(
            questions,
            [texts.second[position] for position in positions],
            truncation="only_second",
            max_length=self.limit,
            stride=self.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        owners, offsets = given.pop("overflow_to_sample_mapping"), given.pop("offset_mapping")
        columns = {name: values for name, values in given.items() if name != "attention_mask"}
        columns |= {"target": [], "begin": [], "end": []}
        for window, (owner, places) in enumerate(zip(owners, offsets, strict=True)):
            inside = [sequence == 1 for sequence in given.sequence_ids(window)]
            own = [place if there else (0, 0) for place, there in zip(places, inside, strict=True)]
            columns["begin"].append([begin for begin, _ in own])
            columns["end"].append([end for _, end in own])
            none = self._place_of_none(columns["input_ids"][window])
            target = [NEITHER if there else IGNORED for there in inside]
            target[none] = NEITHER
            start, end = _place(own, texts.answers[positions[owner]], none)
            target[start] += START
            target[end] += END
            columns["target"].append(target)
        return Tokenised(columns, [], [owners.count(place) for place in range(len(positions))])

    def _place_of_none(self, ids: list[int]) -> int:
        """The place that stands for no answer."""
        own = self.tokenizer.cls_token_id
        return ids.index(own) if own in ids else 0

    def served(self, name: str, splits: Mapping[str, Split], stores: Mapping[str, Tokens]) -> Served:
        """The splits with a sample for each window."""
        begins: dict[int, int] = {}  # of the numbers of the questions of each set of texts
        for split in splits.values():
            texts: Texts = split.inputs
            if id(texts) not in begins:
                begins[id(texts)] = len(self.asked)
                assert texts.second is not None
                assert texts.answers is not None
                pairs = zip(texts.second, texts.answers, strict=True)
                self.asked += [Question(context, tuple(text for text, _ in answers)) for context, answers in pairs]
        found = {stage: _windows(split, stores[stage], begins[id(split.inputs)]) for stage, split in splits.items()}
        questions, windows = (sum(len(each.indices) for each in of.values()) for of in (splits, found))
        several = f"{questions:,} questions in {windows:,} windows of at most {self.limit} tokens"
        return Served(found, (several,) if windows > questions else ())

    def batch_of(self, split: Split, seed: int | None) -> Callable[[Tensor, BatchKey], dict[str, Tensor]]:
        no_masking: Masking | None = None
        return partial(token_batch, split.inputs, no_masking, seed)


def _place(own: Sequence[tuple[int, int]], answers: Sequence[tuple[str, int]], none: int) -> tuple[int, int]:
    """The first and the last token of the first answer, or `none` twice, if the window does not hold all of it.

    Args:
        own: the characters that each token stands for; equal where it is not of the context.
    """
    if not answers:
        return none, none
    text, first = answers[0]
    last = first + len(text)
    held = [place for place, (begin, end) in enumerate(own) if begin < end]
    if not held or own[held[0]][0] > first or own[held[-1]][1] < last:
        return none, none
    inside = [place for place in held if own[place][1] > first and own[place][0] < last]
    return (inside[0], inside[-1]) if inside else (none, none)


def _windows(split: Split, tokens: Tokens, before: int) -> Split:
    """The split with a sample for each window of its questions.

    Args:
        before: the number of the first question of its texts.
    """
    begins = tokens.documents
    if begins is None or not len(split.indices):
        return replace(split, inputs=tokens)
    total = len(tokens.columns["input_ids"])
    lengths = torch.cat([begins[1:], begins.new_tensor([total])]) - begins
    there = (tokens.lengths > 0).nonzero().flatten()
    there = there[tokens.starts[there].argsort()]
    owner = there[torch.searchsorted(tokens.starts[there], begins, right=True) - 1]
    return Split(
        replace(tokens, starts=begins, lengths=lengths, documents=None),
        torch.zeros(len(begins), dtype=torch.int64),
        torch.isin(owner, split.indices).nonzero().flatten(),
        None if split.labelled is None else split.labelled[owner],
        extra={"question": owner + before},
    )
