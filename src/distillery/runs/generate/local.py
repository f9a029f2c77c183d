"""Texts that a network in this process writes."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.data.chat_template import ChatTemplate
from distillery.data.tokens import IGNORED
from distillery.runs.generate.request import EMPTY, LENGTH, STOP, Answer, Request
from distillery.runs.generate.writer import Failure
from distillery.teachers.frozen import Teacher
from distillery.training.rollouts import Rollouts

NUMBERS = 2**40  # a draw depends on so many bits of a request's key


class LocalTeacher:
    """Writes texts with a teacher's network, several at a time, with a cache of keys and values.

    A text is a function of the seed and its request, whatever is written beside it (but for rounding).

    Args:
        teacher: a causal language model.
        name: of it, for the record.
        tokenizer: its own.
        law: how tokens are drawn, and which of them end a text.
        template: renders conversations; None: it answers none.
        positions: how many tokens the network can read; None: unknown.
        at_once: texts that are written together.
    """

    def __init__(
        self,
        teacher: Teacher,
        name: str,
        tokenizer: Any,
        law: Rollouts,
        template: ChatTemplate | None = None,
        positions: int | None = None,
        at_once: int = 8,
    ) -> None:
        self.teacher, self.tokenizer, self.law, self.template = teacher, tokenizer, law, template
        self.positions, self.at_once = positions, at_once
        self.name = name

    @property
    def identity(self) -> dict[str, Any]:
        """What an answer depends on besides the request."""
        law = {name: getattr(self.law, name) for name in ("temperature", "top_p", "top_k", "seed")}
        chat = self.template and [self.template.source, dict(self.template.settings)]
        ends = list(self.law.ends or ())
        return {"model": self.teacher.sha256, "max_tokens": self.law.new_tokens, "ends": ends, "chat": chat, **law}

    @property
    def most_tokens(self) -> int:
        """The most tokens of an answer."""
        return self.law.new_tokens

    def check(self, requests: Sequence[Request]) -> None:
        """See `Writer`."""
        if self.template is None and any(request.messages for request in requests):
            raise UserError(
                f"The tokenizer of {self.name} has no chat template to render conversations with. Set "
                "template=<file.jinja> to the template that the teacher was trained with, or chat=false to have it "
                "continue the prompts."
            )

    def write(
        self, requests: Iterable[Request], keep: Callable[[Request, Answer], None]
    ) -> Iterator[tuple[Request, Answer | Failure]]:
        """The answers as they come, each of which was handed to `keep`."""
        prompts = [(request, self.prompt(request)) for request in requests]
        for request, ids in prompts:
            if not self._fits(ids):
                yield request, Failure(self._reason(ids))
        fit = iter(sorted((each for each in prompts if self._fits(each[1])), key=lambda each: len(each[1])))
        while chunk := list(islice(fit, self.at_once)):
            batch = _batch([ids for _, ids in chunk], [self._number(request) for request, _ in chunk])
            batch = {name: value.to(self.teacher.device) for name, value in batch.items()}
            made = self.law.draw(self.teacher.net, [batch], 0)[0]["target"]
            for (request, ids), target in zip(chunk, made, strict=True):
                answer = self._answer(target[target != IGNORED].tolist(), len(ids))
                keep(request, answer)
                yield request, answer

    def prompt(self, request: Request) -> list[int]:
        """The tokens that are continued."""
        if request.messages:
            assert self.template is not None
            text = self.template(request.messages, request.known.get("tools"), prompt=True)
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        ids: list[int] = self.tokenizer(request.text)["input_ids"]
        return ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids  # the text goes on

    def _fits(self, ids: list[int]) -> bool:
        return bool(ids) and (self.positions is None or len(ids) + self.law.new_tokens <= self.positions)

    def _reason(self, ids: list[int]) -> str:
        if not ids:
            return "the prompt has no tokens"
        return (
            f"the prompt has {len(ids):,} tokens, and with max_tokens={self.law.new_tokens} more than the "
            f"{self.positions:,} positions of the teacher"
        )

    def _number(self, request: Request) -> int:
        return int(request.key({}), 16) % NUMBERS

    def _answer(self, tokens: list[int], prompt_tokens: int) -> Answer:
        ended = tokens[-1] in (self.law.ends or ())
        kept = tokens[:-1] if ended else tokens
        text = str(self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        reason = LENGTH if not ended else STOP if kept else EMPTY
        return Answer(text, reason, self.name, time.time(), prompt_tokens, len(tokens))


def _batch(prompts: list[list[int]], numbers: list[int]) -> dict[str, Tensor]:
    """A batch whose first token that bears loss stands behind the prompt."""
    longest = max(map(len, prompts)) + 1
    ids, target = torch.zeros(len(prompts), longest, dtype=torch.int64), torch.full((len(prompts), longest), IGNORED)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
        target[row, len(prompt)] = 0
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "target": target, "index": torch.tensor(numbers)}
