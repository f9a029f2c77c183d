"""Loads tokenizers by name or from a folder, and compares them."""

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from distillery.core.errors import UserError
from distillery.core.hub import find_config, quiet, source_of

SHOWN = 3
END_OF_TEXT = "<|endoftext|>"  # GPT-2's
END = "end of text"  # the token that ends one, whatever a tokenizer calls it
BLANK = "\u2581"  # SentencePiece's
BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # SentencePiece's token for a byte of a character that it has no token for


@cache
def load_tokenizer(name: str, setting: str) -> Any:
    """The tokenizer `name`.

    Args:
        name: a model on the hub, a folder, or a GGUF file.
        setting: the setting of the config that names it, for error messages.

    Raises:
        UserError: there is no such tokenizer, or the hub cannot be reached.
    """
    try:
        place, file = source_of(name)
        if file or not Path(place).is_dir():
            find_config(name)  # asks the hub once; loading a tokenizer asks for each of its files, with retries
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(place, **file)
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # made from nothing but a model's config.json
            raise ValueError("the files of the vocabulary are missing")
        return tokenizer
    except UserError as error:
        made = " distill-tokenizer makes one of your own texts." if setting == "data.tokenizer" else ""
        raise UserError(f"{setting}={name}: {error}{made}") from None
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, JSON errors and its own
        raise UserError(
            f"{setting}={name}: there is no tokenizer that transformers can load (tokenizer.json, or vocab.txt and "
            f"tokenizer_config.json): {error}"
        ) from error


def train_bpe(texts: Sequence[str], size: int, folder: str | Path) -> int:
    """Write a byte-level BPE tokenizer of these texts to `folder`; returns how many tokens it has, `size` at most.

    Its tokens are the bytes, the end of a text, and merges (Sennrich et al. 2016; Radford et al. 2019). The same texts
    give the same tokenizer.

    Raises:
        UserError: a size that leaves no room for the bytes.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if size <= len(alphabet):
        raise UserError(f"size={size}: {len(alphabet)} of the tokens are bytes and one is the end of a text: set more.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END_OF_TEXT], initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT)
    made.save_pretrained(str(folder))
    return len(made)


def written(tokenizer: Any, name: str) -> str:
    """All that the tokens of a text depend on, in JSON; of a tokenizer in Python, which does not say it, the name."""
    if not tokenizer.is_fast:
        return name
    tokenizer.backend_tokenizer.no_truncation()  # how it was last called is part of what it writes
    tokenizer.backend_tokenizer.no_padding()
    return str(tokenizer.backend_tokenizer.to_str())


@cache
def token_texts(tokenizer: Any) -> list[bytes | str]:
    """What each id stands for: bytes of a text, or the name of a special token. The end of a text is always `END`.

    A blank is a byte, whatever the tokenizer marks it with.
    """
    names, special = tokenizer.convert_ids_to_tokens(range(len(tokenizer))), set(tokenizer.all_special_ids)
    added = tokenizer.added_tokens_decoder
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    byte_level = any('"ByteLevel"' in json.dumps(state[part]) for part in ("pre_tokenizer", "decoder"))
    of_character = {character: byte for byte, character in bytes_to_unicode().items()}

    def text_of(id_: int, name: str | None) -> bytes | str:
        if id_ == tokenizer.eos_token_id:
            return END
        if name is None or id_ in special or (id_ in added and added[id_].special):
            return str(name)
        if id_ in added:
            return name.encode()
        if byte_level and all(character in of_character for character in name):
            return bytes(of_character[character] for character in name)
        if state["model"].get("byte_fallback") and (byte := BYTE.fullmatch(name)):
            return bytes([int(byte[1], 16)])
        return name.replace(BLANK, " ").encode()

    return [text_of(id_, name) for id_, name in enumerate(names)]


@cache
def text_sizes(tokenizer: Any) -> NDArray[np.int64]:
    """How many bytes of a text each id stands for; a special token for its name."""
    texts, names = token_texts(tokenizer), tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    return np.array(
        [len(text if isinstance(text, bytes) else str(name).encode()) for text, name in zip(texts, names, strict=True)]
    )


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


def other_vocabulary(ours: Any, theirs: Any) -> str | None:
    """Three of the ids of `ours` that stand for other tokens in `theirs`, and how many; None if there are none."""
    tokens = {id_: token for token, id_ in theirs.get_vocab().items()}
    other = [(id_, token, tokens.get(id_)) for token, id_ in ours.get_vocab().items() if tokens.get(id_) != token]
    if not other:
        return None
    shown = ", ".join(f"{id_} is {token!r} and {theirs_!r}" for id_, token, theirs_ in sorted(other)[:SHOWN])
    return f"{len(other):,} of {len(ours):,} ids stand for other tokens: {shown}"


def _pieces(tokenizer: Any, ids: list[int]) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(ids[:8])) + (" …" if len(ids) > 8 else "")
