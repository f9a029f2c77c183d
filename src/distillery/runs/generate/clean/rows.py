"""The rows of a file, and what the filters read of them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillery.core.errors import UserError
from distillery.data.sources.messages import FORMATS, conversation
from distillery.data.sources.text_files import json_rows

CONVERSATIONS = ({"messages"}, {"conversations"}, {"prompt", "completion"}, {"instruction", "output"})
SYSTEM = ("system", "developer")


@dataclass(frozen=True)
class Row:
    """A conversation, a prompt with its completion, or a document.

    Attributes:
        line: its line in the file.
        given: the row as it is in the file.
        content: all of its text, as what exact duplicates share.
        prompts: what users and tools say before or between the answers. System prompts are left out: many rows share
            one, and would be near-duplicates of each other by it.
        answers: what is learnt: the assistant's turns, the completion, or the document.
        empty: why it has no answer to learn from, or "".
    """

    line: int
    given: Mapping[str, Any]
    content: str
    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    empty: str = ""

    @property
    def prompt(self) -> str:
        return "\n".join(self.prompts)

    @property
    def answer(self) -> str:
        return "\n".join(self.answers)

    @property
    def whole(self) -> str:
        return "\n".join((*self.prompts, *self.answers))


def read_rows(path: Path, encoding: str | None, notes: list[str]) -> Iterator[Row]:
    """The rows of a JSON Lines file, or of a JSON file with a list, one after another.

    Args:
        notes: to which remarks on how the file was read are added.

    Raises:
        UserError: the file cannot be read, a line is not a JSON object, or a row has another format.
    """
    for line, given in json_rows(path, encoding, notes, "encoding"):
        yield read_row(given, line, f"'{path}', line {line}")


def read_row(given: Mapping[str, Any], line: int, where: str) -> Row:
    """A row as `data=messages` reads it, or with a `text`.

    Raises:
        UserError: another format.
    """
    known = {key for key, value in given.items() if value is not None}
    if not any(keys <= known for keys in CONVERSATIONS):
        text = given.get("text")
        if "text" not in given or not isinstance(text, str | None):
            found = ", ".join(given) or "none"
            raise UserError(f"{where}: unknown format with the keys {found}. A row must have {FORMATS}; or text.")
        text = text or ""
        return Row(line, given, text, (), (text,), "" if text.strip() else "without text")
    document = conversation(given, where)
    parsed = json.loads(document.text)
    if "completion" in parsed:
        return Row(line, given, document.text, (parsed["prompt"],), (parsed["completion"],), document.left_out)
    first = parsed.get("prompt", 0)
    prompts, answers = list[str](), list[str]()
    for number, turn in enumerate(parsed["messages"]):
        if turn["role"] == "assistant" and number >= first:
            answers.append(turn["content"])
        elif turn["role"] not in SYSTEM:
            prompts.append(turn["content"])
    filled = tuple(answer for answer in answers if answer.strip())  # a turn may be calls of tools alone
    return Row(line, given, document.text, tuple(prompts), filled, document.left_out)
