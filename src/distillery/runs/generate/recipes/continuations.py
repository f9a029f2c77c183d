"""Continuations of the training texts of a data set, as a base model writes them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import PositiveInt

from distillery.core.errors import UserError
from distillery.data.module import Data
from distillery.data.sources.messages import prompt_of
from distillery.data.text import TextData
from distillery.runs.generate.recipes.recipe import Answered, Row, unfinished
from distillery.runs.generate.request import LENGTH, Request


@dataclass
class Continuations:
    """Continuations of training texts.

    Of a prompt with a completion the prompt is continued, of a document its first words. Conversations are answered.

    Args:
        data: whose training texts they are.
        samples: texts for each beginning.
        prompt_words: how many words of a document are its beginning.
        cut_off: keep the continuations that `max_tokens` has cut off.
    """

    data: Data
    samples: PositiveInt = 1
    prompt_words: PositiveInt = 24
    cut_off: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.data, TextData):
            raise UserError("generate=continuations: choose texts, such as data=plain_text or data=messages.")

    @property
    def template(self) -> str:
        return json.dumps({"prompt_words": self.prompt_words})

    @property
    def reader(self) -> str:
        texts = self.data.raw.train.inputs
        return "messages" if texts.conversations or texts.completions is not None else "plain_text"

    def rounds(self, answered: Answered) -> Iterator[Sequence[Request]]:
        """See `Recipe`."""
        yield self._requests()

    def rows(self, answered: Answered) -> Iterator[Row]:
        """See `Recipe`."""
        for request in self._requests():
            if (answer := answered(request)) is not None:
                kept = self.cut_off and answer.finish_reason == LENGTH
                yield Row(request, answer, request.row(answer.text), "" if kept else unfinished(answer))

    def _requests(self) -> list[Request]:
        assert isinstance(self.data, TextData)
        split = self.data.training_split()
        texts = split.inputs
        found = list[Request]()
        for position in split.indices.tolist():
            text = texts.first[position]
            given: dict[str, Any] = {"text": text}
            if texts.conversations:
                given = prompt_of(json.loads(text), f"training text {position}")
            elif texts.completions is not None:
                given = {"prompt": text}
            for sample in range(self.samples):
                if "messages" in given:
                    known = {key: value for key, value in given.items() if key != "messages"}
                    found.append(Request(position, sample, messages=given["messages"], known=known))
                elif "prompt" in given:
                    found.append(Request(position, sample, text=given["prompt"]))
                else:
                    found.append(Request(position, sample, text=self._beginning(text), known={"document": True}))
        return found

    def _beginning(self, text: str) -> str:
        """The first words, with the blanks between them."""
        words = text.split(maxsplit=self.prompt_words)
        rest = words[self.prompt_words] if len(words) > self.prompt_words else ""
        return text[: len(text) - len(rest)].rstrip()
