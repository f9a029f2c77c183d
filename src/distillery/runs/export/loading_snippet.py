"""How an exported transformer is loaded and called, as a piece of Python for its model card."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from distillery.models.text.transformer import HEADS
from distillery.tasks.task import Task


def loading_snippet(
    task: type[Task],
    head: str,
    net: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    chat: Mapping[str, Any] | None = None,
    folder: str = "path/to/this/folder",
) -> str:
    """A block of Markdown. The code in it ends with what `task.usage` computes: the student's `logits`, for most tasks.

    Args:
        head: the student's, a key of `HEADS`.
        max_length: the maximum number of tokens of a training text; None: as many as the student has positions.
        chat: what the chat template reads besides the messages, of a student that was trained on conversations.
    """
    auto = HEADS[head].__name__
    text, lines = task.usage(net, tokenizer)
    cut = "truncation=True" + (f", max_length={max_length}" if max_length else "")
    made = [f'inputs = tokenizer({text}, return_tensors="pt", {cut})', *lines]
    if chat is not None:
        settings = "".join(f", {key}={value!r}" for key, value in chat.items())
        made = [
            'messages = [{"role": "user", "content": "A question"}]',
            f"given = dict(add_generation_prompt=True{settings})",
            'inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True, **given)',
            "tokens = model.generate(**inputs, max_new_tokens=200)",
            'print(tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
        ]
    code = [
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f'folder = "{folder}"',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f"model = {auto}.from_pretrained(folder).eval()",
        *made,
    ]
    return "\n".join(["```python", *code, "```"])
