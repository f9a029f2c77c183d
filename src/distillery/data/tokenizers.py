"""Loads tokenizers by name or from a folder, and compares them."""

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
    """The tokenizer `name`.

    Args:
        name: a model on the hub, or a folder.
        setting: the setting of the config that names it, for error messages.

    Raises:
        UserError: there is no such tokenizer, or the hub cannot be reached.
    """
    try:
        if not Path(place := folder_or_name(name)).is_dir():
            find_config(name)  # asks the hub once; loading a tokenizer asks for each of its files, with retries
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(place)
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # made from nothing but a model's config.json
            raise ValueError("the files of the vocabulary are missing")
        return tokenizer
    except UserError as error:
        raise UserError(f"{setting}={name}: {error}") from None
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, JSON errors and its own
        raise UserError(
            f"{setting}={name}: there is no tokenizer that transformers can load (tokenizer.json, or vocab.txt and "
            f"tokenizer_config.json): {error}"
        ) from error


def padding_token(tokenizer: Any) -> int:
    """What texts are padded with: where the tokenizer has no padding token, as GPT-2's, its end of text."""
    choices = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)  # the mask excludes it anyway
    return next(choice for choice in choices if choice is not None)


def difference(ours: Any, theirs: Any, who: str, name: str, texts: Sequence[Any]) -> str | None:
    """Three of `texts` that become other ids, and how many; None if both tokenizers give the same for each.

    Args:
        ours: the data's tokenizer.
        theirs, name: the tokenizer that the network was made for.
        who: the network's role.
    """
    if ours is theirs:
        return None
    texts = [text if isinstance(text, str) else " ".join(text) for text in texts]
    pairs = ((text, ours(text)["input_ids"], theirs(text)["input_ids"]) for text in texts)
    other = [(text, a, b) for text, a, b in pairs if a != b]
    if not other:
        return None
    shown = "\n".join(
        f"  {text[:60]!r}\n    data: {_pieces(ours, a)}\n    {who}: {_pieces(theirs, b)}"
        for text, a, b in other[:SHOWN]
    )
    return (
        f"The {who} network was made for the tokenizer {name}, which differs from that of the data: {len(other)} of "
        f"{len(texts)} texts become other tokens:\n{shown}\n"
    )


def _pieces(tokenizer: Any, ids: list[int]) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(ids[:8])) + (" …" if len(ids) > 8 else "")
