"""Conversations and instructions in the formats of TRL and LLaMA-Factory, from JSON files."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distillery.core.errors import UserError, did_you_mean
from distillery.data.raw_data import RawData
from distillery.data.sources.documents import Document, document_data
from distillery.data.sources.text_files import Given, json_rows

ROLES = ("system", "developer", "user", "assistant", "tool")
# ShareGPT's names of the roles, as LLaMA-Factory reads them.
SHARE_GPT = {"human": "user", "gpt": "assistant", "observation": "tool"}
FORMATS = (
    "messages: [{role, content}, …]; prompt and completion (texts, or lists of messages); conversations: "
    "[{from, value}, …] (ShareGPT); or instruction, input and output (Alpaca)"
)
FORMAT_KEYS = frozenset("messages conversations prompt completion instruction input output system history".split())
SHOWN = 80  # characters of a value in a message


def messages(
    path: Given,
    test: Given | None = None,
    val: Given | None = None,
    test_fraction: float = 0.1,
    encoding: str | None = None,
) -> RawData:
    """Conversations, one in each row. Whole conversations are held out; repeated ones are left out and counted.

    Each row has its own format: `messages`, `prompt` and `completion`, ShareGPT's `conversations`, or Alpaca's
    `instruction`, `input` and `output`; see `conversation`.

    Args:
        path, test, val: .jsonl files with an object in each line, or .json files with a list of objects. Without `test`
            the test split is `test_fraction` of the conversations of `path`, always the same.
        encoding: of all files; None: as the byte order mark says, else UTF-8.

    Raises:
        UserError: a file cannot be read, a row has another format, or a split has no conversation.
    """
    files = {"train": path, "val": val, "test": test}
    notes = list[str]()
    parts = {part: _read(Path(file), encoding, notes) for part, file in files.items() if file is not None}
    return document_data(Path(path).stem, parts, test_fraction, notes, "conversations", conversations=True)


def _read(path: Path, encoding: str | None, notes: list[str]) -> Iterator[Document]:
    for line, row in json_rows(path, encoding, notes):
        yield conversation(row, f"'{path}', line {line}")


def conversations_of(rows: Iterable[Mapping[str, Any]], where: str) -> Iterator[Document]:
    """The conversations of a data set's rows."""
    for number, row in enumerate(rows):
        yield conversation(row, f"{where}, row {number}")


def conversation(row: Mapping[str, Any], where: str) -> Document:
    """A row in the form that `Conversations` read: a JSON object.

    It has `messages`, and if the row has them `tools` and `prompt`, the number of messages that bear no loss; or two
    strings, `prompt` and `completion`. Conversations with an empty turn, without a turn of the assistant, or that begin
    with one, are left out.

    Raises:
        UserError: another format, an unknown role, or a content that is not text.
    """
    given = {key: value for key, value in row.items() if value is not None}
    extra: dict[str, Any] = {}
    if "messages" in given:
        turns = _messages(given["messages"], "messages", where)
    elif "conversations" in given:
        turns = _messages(given["conversations"], "conversations", where)
        turns = _with_system(given, turns)
    elif "prompt" in given and "completion" in given:
        prompt, completion = given["prompt"], given["completion"]
        if isinstance(prompt, str) and isinstance(completion, str):
            text = json.dumps({"prompt": prompt, "completion": completion}, ensure_ascii=False)
            return Document(text, "" if completion.strip() else "with an empty completion")
        turns = _messages(prompt, "prompt", where)
        extra["prompt"] = len(turns)
        turns += _messages(completion, "completion", where)
    elif "instruction" in given and "output" in given:
        turns = _alpaca(given, where)
    else:
        raise UserError(f"{where}: unknown format with the keys {', '.join(row) or 'none'}. A row must have {FORMATS}.")
    if "tools" in given:
        extra["tools"] = json.loads(given["tools"]) if isinstance(given["tools"], str) else given["tools"]
    first = next((turn["role"] for turn in turns if turn["role"] not in ("system", "developer")), None)
    reason = ""
    if any(not turn.get("tool_calls") and not turn["content"].strip() for turn in turns if turn["role"] != "system"):
        reason = "conversations with an empty turn"
    elif all(turn["role"] != "assistant" for turn in turns[extra.get("prompt", 0) :]):
        reason = "conversations without an assistant turn"
    elif first == "assistant":
        reason = "conversations that begin with an assistant turn"
    return Document(json.dumps({"messages": turns, **extra}, ensure_ascii=False), reason)


def prompt_of(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What stands before the first answer of a row in one of the formats, which need not have an answer.

    Returns: `messages`, or a `prompt` that is a text; and the row's other fields, as `tools`.

    Raises:
        UserError: another format, an unknown role, a content that is not text, or nothing before the answer.
    """
    given = {key: value for key, value in row.items() if value is not None}
    rest = {key: value for key, value in given.items() if key not in FORMAT_KEYS}
    first = 0
    if isinstance(given.get("prompt"), str):
        if not given["prompt"].strip():
            raise UserError(f"{where}: the prompt is empty.")
        return {"prompt": given["prompt"], **rest}
    if "messages" in given:
        turns, first = _messages(given["messages"], "messages", where), given.get("prompt", 0)
    elif "conversations" in given:
        turns = _with_system(given, _messages(given["conversations"], "conversations", where))
    elif "prompt" in given:
        turns = _messages(given["prompt"], "prompt", where)
        first = len(turns)
    elif "instruction" in given:
        turns = _alpaca({**given, "output": ""}, where)[:-1]
        first = len(turns)
    else:
        raise UserError(
            f"{where}: no prompt, but the keys {', '.join(row) or 'none'}. A row has a prompt, or {FORMATS}."
        )
    answers = (at for at, turn in enumerate(turns) if at >= first and turn["role"] == "assistant")
    turns = turns[: next(answers, len(turns))]
    if not any(turn["role"] == "user" and turn["content"].strip() for turn in turns):
        raise UserError(f"{where}: there is no turn of the user to answer.")
    return {"messages": turns, **rest}


def _messages(given: Any, key: str, where: str) -> list[dict[str, Any]]:
    """Messages with `role` and `content`, and whatever else they have."""
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise UserError(
            f"{where}: '{key}' is not a list of messages: {str(given)[:SHOWN]!r}. A row must have {FORMATS}."
        )
    found: list[dict[str, Any]] = []
    for number, each in enumerate(given):
        said = {name: value for name, value in each.items() if value is not None}
        role, content = said.pop("role", said.pop("from", None)), said.pop("content", said.pop("value", None))
        role = SHARE_GPT.get(role, role)
        place = f"{where}: '{key}', message {number}"
        if role not in ROLES:
            hint = did_you_mean(str(role), [*ROLES, *SHARE_GPT])
            raise UserError(f"{place}: unknown role {role!r}. Known roles are {', '.join([*ROLES, *SHARE_GPT])}.{hint}")
        if content is None and "tool_calls" in said:
            content = ""
        if not isinstance(content, str):
            raise UserError(f"{place}: the content is not text: {str(content)[:SHOWN]!r}.")
        found.append({"role": role, "content": content, **said})
    return found


def _with_system(given: Mapping[str, Any], turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns after the system prompt that stands beside them, if there is one."""
    system = given.get("system")
    return [{"role": "system", "content": system}, *turns] if system else turns


def _alpaca(given: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Earlier turns (`history`), the instruction with its input, and the output."""
    for key in ("instruction", "input", "output", "system"):
        if not isinstance(given.get(key, ""), str):
            raise UserError(f"{where}: '{key}' is not text: {str(given[key])[:SHOWN]!r}.")
    earlier = [text for pair in given.get("history", []) for text in pair]
    asked = "\n".join(text for text in (given["instruction"], given.get("input")) if text)
    said = [*earlier, asked, given["output"]]
    turns = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(said)]
    return _with_system(given, turns)
