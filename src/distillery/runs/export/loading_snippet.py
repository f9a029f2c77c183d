"""How an exported transformer is loaded and called, as a piece of Python for its model card."""

from torch import nn
from transformers import PreTrainedTokenizerBase

from distillery.models.text.transformer import HEADS
from distillery.tasks.task import Task


def loading_snippet(
    task: type[Task], head: str, net: nn.Module, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> str:
    """A block of Markdown. The code in it ends with what `task.usage` computes: the student's `logits`, for most tasks.

    Args:
        head: the student's, a key of `HEADS`.
        max_length: the maximum number of tokens of a training text; None: as many as the student has positions.
    """
    auto = HEADS[head].__name__
    text, lines = task.usage(net, tokenizer)
    cut = "truncation=True" + (f", max_length={max_length}" if max_length else "")
    code = [
        f"from transformers import {auto}, AutoTokenizer",
        "",
        'folder = "path/to/this/folder"',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f"model = {auto}.from_pretrained(folder).eval()",
        f'inputs = tokenizer({text}, return_tensors="pt", {cut})',
        *lines,
    ]
    return "\n".join(["```python", *code, "```"])
