"""How an exported transformer is loaded and asked, as a piece of Python for its model card."""

from torch import nn
from transformers import PreTrainedTokenizerBase

from distillery.models.text.sentence_encoder import SentenceEncoder, pretrained_model
from distillery.models.text.transformer import HEADS

PIPELINES = {  # what the hub calls each head's task
    "sequence_classification": "text-classification",
    "token_classification": "token-classification",
    "masked_lm": "fill-mask",
    "sentence_embedding": "sentence-similarity",
}


def loading_snippet(head: str, net: nn.Module, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> str:
    """A block of Markdown. In it `logits` are the student's, or `embedding` is where that is what it gives.

    Args:
        head: a key of `HEADS`.
        net: the student.
        tokenizer: the one that it is exported with.
        max_length: the most tokens of a text that it was trained on; None: as many as it has positions.
    """
    auto = HEADS[head].__name__
    model = pretrained_model(net)
    text, split, asked = '"A text of yours."', "", ["logits = model(**inputs).logits"]
    if head == "sequence_classification":
        if model is not None and len(model.config.id2label or ()) > 1:
            asked.append("model.config.id2label[logits[0].argmax().item()]")
    elif head == "token_classification":
        text, split = '["Words", "of", "yours", "."]', ", is_split_into_words=True"
    elif head == "masked_lm":
        text = f'"A {tokenizer.mask_token} of yours."'
    else:
        asked = [
            "states = model(**inputs).last_hidden_state",
            'counts = inputs["attention_mask"].unsqueeze(-1)',
            "embedding = (states * counts).sum(1) / counts.sum(1)",
        ]
        if isinstance(net, SentenceEncoder) and net.normalise:
            asked.append("embedding = embedding / embedding.norm(dim=-1, keepdim=True)")
    cut = "truncation=True" + (f", max_length={max_length}" if max_length else "")
    lines = [
        f"from transformers import {auto}, AutoTokenizer",
        "",
        'folder = "path/to/this/folder"',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f"model = {auto}.from_pretrained(folder).eval()",
        f'inputs = tokenizer({text}{split}, return_tensors="pt", {cut})',
        *asked,
    ]
    return "\n".join(["```python", *lines, "```"])
