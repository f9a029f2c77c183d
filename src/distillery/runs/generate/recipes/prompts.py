"""Prompts from files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distillery.core.errors import UserError
from distillery.data.sources.messages import FORMATS, prompt_of
from distillery.data.sources.text_files import json_rows


def read_prompts(path: str, encoding: str | None = None, setting: str = "prompts") -> list[dict[str, Any]]:
    """The rows of a .jsonl or .json file: each has a `prompt`, or `messages` up to the first answer; and other fields.

    Args:
        encoding: of the file; None: as its byte order mark says, else UTF-8.
        setting: what names the file, for messages.

    Raises:
        UserError: the file cannot be read, a row has another format, or there is none.
    """
    notes = list[str]()
    found = [prompt_of(row, f"'{path}', line {line}") for line, row in json_rows(Path(path), encoding, notes)]
    if not found:
        raise UserError(f"{setting}={path}: there is no prompt in this file. A row has a prompt, or {FORMATS}.")
    return found


def conversation_of(row: Mapping[str, Any], system: str | None = None) -> list[dict[str, Any]]:
    """The messages of a prompt, behind the `system` prompt if they have none."""
    messages: list[dict[str, Any]] = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
    if system and all(message["role"] != "system" for message in messages):
        return [{"role": "system", "content": system}, *messages]
    return messages


def other_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row has besides its prompt."""
    return {key: value for key, value in row.items() if key not in ("messages", "prompt")}


def as_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """A conversation to be shown in a prompt: a single message as it is, several with their roles."""
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)
