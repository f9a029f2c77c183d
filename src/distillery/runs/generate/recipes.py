"""Recipes: what a teacher is asked for. Each is an option of the config group `generate`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import PositiveInt

from distillery.core.errors import UserError
from distillery.data.module import Data
from distillery.data.sources.messages import FORMATS, prompt_of
from distillery.data.sources.text_files import json_rows
from distillery.data.text import TextData
from distillery.runs.generate.request import Request


class Recipe(Protocol):
    """Makes requests.

    Attributes:
        template: what the recipe writes around a prompt, for the record.
    """

    template: str

    def requests(self) -> list[Request]:
        """All requests, always in the same order.

        Raises:
            UserError: the prompts cannot be read.
        """


@dataclass
class Answers:
    """Answers to given prompts.

    Args:
        prompts: a .jsonl or .json file. A row has a `prompt`, or is a conversation as `data=messages` reads it, up to
            its first answer.
        samples: answers to each prompt.
        system: a system prompt for conversations that have none.
        chat: False: the teacher continues the text of `prompt`, as a base model does.
        encoding: of the file; None: as its byte order mark says, else UTF-8.
    """

    prompts: str
    samples: PositiveInt = 1
    system: str | None = None
    chat: bool = True
    encoding: str | None = None

    @property
    def template(self) -> str:
        return json.dumps({"system": self.system, "chat": self.chat})

    def requests(self) -> list[Request]:
        """See `Recipe`."""
        path, notes = Path(self.prompts), list[str]()
        found = [prompt_of(row, f"'{path}', line {line}") for line, row in json_rows(path, self.encoding, notes)]
        if not found:
            raise UserError(f"prompts={path}: there is no prompt in this file. A row has a prompt, or {FORMATS}.")
        return [self._request(*each, sample) for each in enumerate(found) for sample in range(self.samples)]

    def _request(self, place: int, row: Mapping[str, Any], sample: int) -> Request:
        known = {key: value for key, value in row.items() if key not in ("messages", "prompt")}
        if "prompt" in row and not self.chat:
            return Request(place, sample, text=row["prompt"], known=known)
        messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
        if not self.chat:
            raise UserError(f"chat=false: prompt {place} of {self.prompts} is a conversation, and not a text.")
        if self.system and all(message["role"] != "system" for message in messages):
            messages = [{"role": "system", "content": self.system}, *messages]
        return Request(place, sample, messages=messages, known=known)


@dataclass
class Continuations:
    """Continuations of the training texts of a data set, as a base model writes them.

    Of a prompt with a completion the prompt is continued, of a document its first words. Conversations are answered.

    Args:
        data: whose training texts they are.
        samples: texts for each beginning.
        prompt_words: how many words of a document are its beginning.
    """

    data: Data
    samples: PositiveInt = 1
    prompt_words: PositiveInt = 24

    def __post_init__(self) -> None:
        if not isinstance(self.data, TextData):
            raise UserError("generate=continuations: choose texts, such as data=plain_text or data=messages.")

    @property
    def template(self) -> str:
        return json.dumps({"prompt_words": self.prompt_words})

    def requests(self) -> list[Request]:
        """See `Recipe`."""
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
