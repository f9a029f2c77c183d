"""Chat templates: how a tokenizer writes a conversation, and what of it the template says that the assistant writes."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from distillery.core.errors import UserError

Span = tuple[int, int]  # of characters: the first, and the one after the last
Message = Mapping[str, Any]

OWN_MASK = re.compile(r"{%-?\s*generation\s*-?%}")
TODAY = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
DATE = date(2024, 7, 26)  # instead of today: that of Llama 3's template where none is known
SHOWN = 160  # characters of a text in a message


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template, or another one for it.

    Args:
        tokenizer: whose special tokens the template writes.
        source: the template itself (Jinja).
        settings: what else the template reads, as `enable_thinking`.
    """

    tokenizer: Any
    source: str
    settings: Mapping[str, Any]

    def __call__(self, messages: Sequence[Message], tools: Any = None, prompt: bool = False) -> str:
        """The text of the messages; `prompt`: and the beginning of the assistant's next turn."""
        return self._render(messages, tools, add_generation_prompt=prompt)[0]

    def marked(self, messages: Sequence[Message], tools: Any = None) -> tuple[str, list[Span]]:
        """The text of the messages, and what the template itself says that the assistant writes, if it does."""
        return self._render(messages, tools, return_assistant_tokens_mask=self.marks)

    @property
    def marks(self) -> bool:
        """Whether it says by `{% generation %}` what the assistant writes."""
        return OWN_MASK.search(self.source) is not None

    @cached_property
    def specials(self) -> tuple[str, ...]:
        """The special tokens, as text."""
        return tuple(str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special)

    @cached_property
    def ends(self) -> set[str]:
        """The special tokens that end an assistant's turn; none if it ends otherwise."""
        example = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            text = self(example)
        except UserError:
            return set()
        return {token for token in self.specials if text.rstrip().endswith(token)}

    @cached_property
    def _dated(self) -> str:
        """The template with `DATE` instead of today, with which the tokens would be others each day."""
        return TODAY.sub(lambda found: repr(DATE.strftime(found[2])), self.source)

    def _render(self, messages: Sequence[Message], tools: Any, **options: Any) -> tuple[str, list[Span]]:
        given: Any = {**self.tokenizer.special_tokens_map, **options, **self.settings}
        try:
            made: Any = render_jinja_template([list(map(dict, messages))], tools, chat_template=self._dated, **given)
        except (TemplateError, TypeError, ValueError) as error:
            raise UserError(
                f"The chat template cannot render a conversation ({error}): {_short(messages)}. Correct the data, or "
                "choose another template (data.template)."
            ) from error
        (text,), marks = made
        return text, [(start, end) for start, end in chain(*marks)]


def chat_template(tokenizer: Any, given: str | None, settings: Mapping[str, Any] | None) -> ChatTemplate | None:
    """The chat template `given`, itself or in a file, or else the tokenizer's own; None: there is none.

    Raises:
        UserError: no such file.
    """
    if given is not None and "{" not in given:
        try:
            given = Path(given).read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise UserError(
                f"data.template={given} is neither a Jinja template nor a file with one: {error}"
            ) from error
    if given is None and not tokenizer.chat_template:
        return None
    return ChatTemplate(tokenizer, given or tokenizer.get_chat_template(), settings or {})


def _short(messages: Any) -> str:
    return json.dumps(messages, ensure_ascii=False)[:SHOWN]
