"""Tokenizers: loaded by name or folder, and compared."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from distillery.core.errors import UserError
from distillery.core.hub import find_config, folder_or_name, quiet

SHOWN = 3


@cache
def load_tokenizer(name: str, setting: str) -> Any:
    """The tokenizer of that name on the hub, or in that folder.

    Args:
        name: of a model on the hub, or a folder.
        setting: which setting of the config names it, for the error.

    Raises:
        UserError: there is none, or the hub cannot be reached.
    """
    try:
        if not Path(place := folder_or_name(name)).is_dir():
            find_config(name)  # asks the hub once, where a tokenizer would ask for each of its files, with pauses
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(place)
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # it is made of nothing where a network's config.json is
            raise ValueError("the files of the vocabulary are missing")
        return tokenizer
    except UserError as error:
        raise UserError(f"{setting}={name}: {error}") from None
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, JSON errors and its own
        raise UserError(
            f"{setting}={name}: there is no tokenizer that transformers can load (tokenizer.json, or vocab.txt and "
            f"tokenizer_config.json): {error}"
        ) from error


def refuse_other_tokenizer(ours: Any, theirs: Any, who: str, name: str, texts: Sequence[Any]) -> None:
    """Raise UserError unless both tokenizers cut each of `texts` into the same ids; `who` wants `theirs`, `name`."""
    if ours is theirs:
        return
    texts = [text if isinstance(text, str) else " ".join(text) for text in texts]
    pairs = ((text, ours(text)["input_ids"], theirs(text)["input_ids"]) for text in texts)
    other = [(text, a, b) for text, a, b in pairs if a != b]
    if not other:
        return
    shown = "\n".join(
        f"  {text[:60]!r}\n    data: {_pieces(ours, a)}\n    {who}: {_pieces(theirs, b)}"
        for text, a, b in other[:SHOWN]
    )
    raise UserError(
        f"The {who} network was made for another tokenizer, {name}, than the data's: {len(other)} of {len(texts)} "
        f"texts become other tokens:\n{shown}\nSet data.tokenizer={name}, and train the other network on that one too."
    )


def _pieces(tokenizer: Any, ids: list[int]) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(ids[:8])) + (" …" if len(ids) > 8 else "")
