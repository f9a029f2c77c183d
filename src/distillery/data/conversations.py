"""Conversations for causal language models: rendered by a chat template, with loss on what the assistant says."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np

from distillery.core.errors import UserError
from distillery.data.chat_template import SHOWN, ChatTemplate, Message, Span
from distillery.data.documents import Documents, ended_columns, ends_of, token_bytes, with_offsets
from distillery.data.raw_data import Split, Texts
from distillery.data.tokenizers import text_sizes
from distillery.data.tokens import IGNORED, Served, Tokenised, Tokens

# A think-span and the blanks after it; the generation prompt may have opened the first.
THINK = re.compile(r"(?:\A(?:(?!<think>).)*?</think>|<think>.*?(?:</think>|\Z))\s*", re.DOTALL)


class Rendered(NamedTuple):
    """A document, and the parts of it that bear loss; `chat`: a template rendered it, with all special tokens."""

    text: str
    spans: list[Span]
    chat: bool


@dataclass(frozen=True)
class Conversations(Documents):
    """Conversations, each of which is a document; the loss is on the assistant's turns and the tokens that end them.

    A turn ends with its last special token: the line break that many templates write after it bears no loss. What is
    masked was found by rendering the messages before each turn, with the beginning of a turn, and those up to its end:
    what the second has more is the turn. Where a template renders a turn otherwise once others follow, as those that
    drop earlier think-spans, the conversation up to that turn becomes a document of its own: each turn is learnt as it
    is generated.

    If the template has a mask of its own, that counts; it must lie within these turns and contain their ends.

    Args:
        template: None: there are prompts and completions of plain text alone.
        think: whether think-spans, `<think>…</think>`, bear loss.
    """

    template: ChatTemplate | None = None
    think: Literal["keep", "mask"] = "keep"

    unit = "conversations"

    @property
    def key(self) -> bytes:
        template = self.template and (self.template.source, sorted(self.template.settings.items()))
        return f"conversations {template} {self.think}".encode()

    def tokenised(self, texts: Texts, positions: Sequence[int]) -> Tokenised:
        """The columns of the conversations' documents, with `target`."""
        documents = [list(self.documents(json.loads(texts.first[position]))) for position in positions]  # type: ignore[arg-type]
        columns: dict[str, list[list[int]]] = {"input_ids": [], "bytes": [], "target": []}
        every = list(chain.from_iterable(documents))
        made = {chat: self._columns([each for each in every if each.chat == chat], chat) for chat in (True, False)}
        for each in every:
            for name, values in next(made[each.chat]).items():
                columns[name].append(values)
        lengths = iter([len(ids) for ids in columns["input_ids"]])
        longest = [max(next(lengths) for _ in own) for own in documents]
        longer = [position for position, length in zip(positions, longest, strict=True) if length > self.most]
        return Tokenised(columns, longer, [len(own) for own in documents])

    def served(self, name: str, splits: Mapping[str, Split], stores: Mapping[str, Tokens]) -> Served:
        """The splits in blocks, and how the first conversation is rendered."""
        found, remarks = super().served(name, splits, stores)
        train = splits["train"]
        first = next(self.documents(json.loads(train.inputs.first[int(train.indices[0])])))
        remarks += (f"the first conversation begins with {first.text[:SHOWN]!r}",)
        if self.template and first.chat and not first.text.rstrip().endswith(self.template.specials):
            remarks += ("no special token ends an assistant turn: the student does not learn where to stop",)
        return Served(found, remarks)

    def documents(self, conversation: Mapping[str, Any]) -> Iterator[Rendered]:
        """The documents of a conversation, one for all turns that a template renders as it did when each was the last.

        Args:
            conversation: `messages`, and perhaps `tools` and how many messages are the `prompt` alone; or `prompt` and
                `completion`, two strings.

        Raises:
            UserError: the template refuses it, or its mask is not that of the turns.
        """
        if "completion" in conversation:
            prompt, text = conversation["prompt"], conversation["prompt"] + conversation["completion"]
            yield Rendered(text, self._without_think(text, [(len(prompt), len(text))]), chat=False)
            return
        if self.template is None:
            raise UserError(
                f"data.tokenizer={self.tokenizer.name_or_path} has no chat template to render conversations with. Set "
                "data.template=<file.jinja> to the template that the teacher was trained with, or data.tokenizer to "
                "the tokenizer of an instruction-tuned model."
            )
        messages, tools = conversation["messages"], conversation.get("tools")
        first = conversation.get("prompt", 0)
        turns = [at for at, message in enumerate(messages) if message["role"] == "assistant" and at >= first]
        while turns:
            known = messages[: turns[-1] + 1]
            text, marks = (
                self.template.marked(known, tools) if self.template.marks else (self.template(known, tools), [])
            )
            spans: list[Span] = []
            left: list[int] = []
            for turn in turns:
                found = self._turn(messages, tools, turn, text, last=turn == turns[-1])
                if found is None:
                    left.append(turn)
                else:
                    spans += [found] if not self.template.marks else self._marked(text, marks, found)
            if self.template.marks and not left and not first:
                self._refuse_marks_outside(text, marks, spans)
            yield Rendered(text, self._without_think(text, spans), chat=True)
            turns = left

    def _turn(self, messages: Sequence[Message], tools: Any, turn: int, text: str, last: bool) -> Span | None:
        """Where a turn is in the text; None if the text does not begin as when that turn was the last."""
        assert self.template is not None
        ended = text if last else self.template(messages[: turn + 1], tools)
        if not text.startswith(ended):
            return None
        before = self.template(messages[:turn], tools, prompt=True)
        start = len(before)
        if not ended.startswith(before):
            start = next(at for at in range(start) if not ended.startswith(before[: at + 1]))
        if start < len(before) and not self.template.marks:  # which say where the turn begins
            raise UserError(
                "The chat template renders an assistant turn differently from its generation prompt, so the tokens "
                f"that the assistant generates are not known:\n  prompt: …{before[-SHOWN:]!r}\n  turn:   "
                f"…{ended[-SHOWN:]!r}\nSet data.template_kwargs as for generation (e.g. enable_thinking), or "
                "data.template to a template that puts the assistant's text between {% generation %} and "
                "{% endgeneration %}."
            )
        self._refuse_left_out(messages[turn], ended[start:])
        return start, start + len(self._to_the_end(ended[start:]))

    def _to_the_end(self, turn: str) -> str:
        """A turn without the blanks after the special token that ends it."""
        assert self.template is not None
        bare = turn.rstrip()
        return bare if bare.endswith(self.template.specials) else turn

    def _marked(self, text: str, marks: Sequence[Span], turn: Span) -> list[Span]:
        """What of a turn the template's own mask marks, which must contain its end."""
        own = [(max(start, turn[0]), min(end, turn[1])) for start, end in marks if start < turn[1] and end > turn[0]]
        if not own or own[-1][1] != turn[1]:
            marked = "".join(text[start:end] for start, end in own)
            raise UserError(
                "The chat template's {% generation %} leaves out the end of a turn, so the student would not learn to "
                f"stop:\n  turn:   {text[slice(*turn)][-SHOWN:]!r}\n  marked: {marked[-SHOWN:]!r}\nCorrect the "
                "template (data.template): the token that ends a turn belongs before {% endgeneration %}."
            )
        return own

    def _refuse_marks_outside(self, text: str, marks: Sequence[Span], turns: Sequence[Span]) -> None:
        for start, end in marks:
            if text[start:end].strip() and not any(start < last and end > first for first, last in turns):
                raise UserError(
                    f"The chat template's {{% generation %}} marks text outside of the assistant's turns: "
                    f"{text[start:end][:SHOWN]!r}. Correct the template (data.template)."
                )

    def _refuse_left_out(self, message: Message, turn: str) -> None:
        """Refuse a template that does not write what the assistant says, but for an earlier think-span."""
        if message["content"].rpartition("</think>")[2].strip() not in turn:
            raise UserError(
                f"The chat template leaves out text of the assistant: it renders {message['content'][:SHOWN]!r} as "
                f"{turn[:SHOWN]!r}. Choose another template (data.template)."
            )

    def _without_think(self, text: str, spans: Sequence[Span]) -> list[Span]:
        if self.think == "keep":
            return list(spans)
        kept: list[Span] = []
        for start, end in spans:
            at = start
            for found in THINK.finditer(text[start:end]):
                kept.append((at, start + found.start()))
                at = start + found.end()
            kept.append((at, end))
        return kept

    def _columns(self, documents: Sequence[Rendered], chat: bool) -> Iterator[dict[str, list[int]]]:
        """The columns of each document. A token bears loss if any character of it does."""
        if not documents:
            return
        texts = [document.text for document in documents]
        given = with_offsets(self.tokenizer, texts, add_special_tokens=not chat)
        columns = self._chat_columns(given, texts) if chat else ended_columns(given, texts, self.tokenizer)
        for document, encoding, ids, sizes in zip(
            documents, given.encodings, columns["input_ids"], columns["bytes"], strict=True
        ):
            ends = np.maximum.accumulate(ends_of(encoding))
            before = np.concatenate([[0], ends[:-1]])
            bears = np.zeros(len(ids), dtype=bool)
            for start, end in document.spans:
                bears[: len(ends)] |= (ends > start) & (before < end)
            if not chat:
                bears[-1] |= ids[-1] == self.tokenizer.eos_token_id
            yield {"input_ids": ids, "bytes": sizes, "target": np.where(bears, ids, IGNORED).tolist()}

    def _chat_columns(self, given: Any, texts: Sequence[str]) -> dict[str, list[list[int]]]:
        """The tokens of rendered texts; special ones, which the template has written, stand for no bytes."""
        special = [at for at, token in self.tokenizer.added_tokens_decoder.items() if token.special]
        sizes, own = [], text_sizes(self.tokenizer)
        for text, ids, encoding in zip(texts, given["input_ids"], given.encodings, strict=True):
            sizes.append(np.where(np.isin(ids, special), 0, token_bytes(text, ends_of(encoding), own[ids])).tolist())
        return {"input_ids": given["input_ids"], "bytes": sizes}


def spoken(text: str) -> str:
    """What is said in a conversation, which is a JSON object, without the roles."""
    given = json.loads(text)
    if "completion" in given:
        return f"{given['prompt']}{given['completion']}"
    return "\n".join(message["content"] for message in given["messages"])
