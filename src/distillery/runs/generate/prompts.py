"""What of a data set's training texts a teacher continues, and the rows that its texts become."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from distillery.core.errors import UserError
from distillery.data.chat_template import chat_template
from distillery.data.text import TextData


class Prompt(NamedTuple):
    """Attributes:
    position: of the text in the data set.
    ids: the tokens that are continued.
    before: of the row what is known: `messages` and `tools`, a `prompt`, or nothing of a document.
    """

    position: int
    ids: list[int]
    before: Mapping[str, Any]


def prompts_of(data: TextData, tokens: int) -> Iterator[Prompt]:
    """Of each training conversation what stands before the first answer that is learnt; of a document the beginning.

    Args:
        tokens: how many of a document's tokens are its prompt.

    Raises:
        UserError: conversations, and no chat template to render them with.
    """
    split, tokenizer = data.training_split(), data.loaded_tokenizer
    template = chat_template(tokenizer, data.template, data.template_kwargs)
    texts = split.inputs
    for position in split.indices.tolist():
        text = texts.first[position]
        given = json.loads(text) if texts.conversations else {}
        if texts.completions is not None or "completion" in given:
            prompt = given.get("prompt", text)
            yield Prompt(position, _beginning(tokenizer, prompt), {"prompt": prompt})
        elif not texts.conversations:
            yield Prompt(position, _beginning(tokenizer, text)[:tokens], {})
        else:
            if template is None:
                raise UserError(
                    f"The tokenizer {data.tokenizer} has no chat template to render conversations with. Set "
                    "data.template=<file.jinja> to the template that the teacher was trained with."
                )
            first = given.get("prompt", 0)
            messages = given["messages"]
            turn = next(at for at, each in enumerate(messages) if at >= first and each["role"] == "assistant")
            known = {"messages": messages[:turn]} | {key: given[key] for key in ("tools",) if key in given}
            rendered = template(known["messages"], known.get("tools"), prompt=True)
            yield Prompt(position, tokenizer(rendered, add_special_tokens=False)["input_ids"], known)


def row_of(prompt: Prompt, tokens: Sequence[int], tokenizer: Any) -> dict[str, Any]:
    """A row as `data=messages` reads it, or of a document as `data=plain_text` does.

    Args:
        tokens: what follows the prompt, without the end.
    """

    def text(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    if "messages" in prompt.before:
        answer = {"role": "assistant", "content": text(tokens)}
        return {**prompt.before, "messages": [*prompt.before["messages"], answer]}
    if "prompt" in prompt.before:
        return {**prompt.before, "completion": text(tokens)}
    return {"text": text([*prompt.ids, *tokens])}


def _beginning(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text that goes on: without the end that some tokenizers add."""
    ids: list[int] = tokenizer(text)["input_ids"]
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids
