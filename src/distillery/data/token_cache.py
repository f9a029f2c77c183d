"""Tokenised texts, kept in the cache folder for later runs and for the other processes of a run."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from distillery.core.files import atomic_write
from distillery.core.paths import cache_folder

SETTINGS = ("model_input_names", "truncation_side", "special_tokens_map", "add_prefix_space")
CHECKSUM = "sha256"


def tokenizer_key(tokenizer: Any, limit: int | None, *content: bytes) -> str | None:
    """What tokens depend on: the tokenizer, `limit` tokens a text, and the texts; None: not known.

    A tokenizer written in Python does not say all that it depends on.
    """
    if not tokenizer.is_fast:
        return None
    tokenizer.backend_tokenizer.no_truncation()  # how it was last called is part of what it writes
    tokenizer.backend_tokenizer.no_padding()
    settings = [getattr(tokenizer, name, None) for name in SETTINGS]
    versions = (type(tokenizer).__name__, tokenizers.__version__, transformers.__version__)
    said = f"{tokenizer.backend_tokenizer.to_str()} {settings} {versions} {limit}"
    return hashlib.sha256(said.encode() + b"".join(hashlib.sha256(part).digest() for part in content)).hexdigest()


def load_tokens(key: str | None) -> dict[str, Tensor] | None:
    """What `save_tokens` has kept; None if there is nothing, or a damaged file."""
    if key is None:
        return None
    with suppress(OSError, SafetensorError), safe_open(_file(key), "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if (file.metadata() or {}).get(CHECKSUM) == _checksum(tensors):
            return tensors
    return None


def save_tokens(key: str | None, tensors: Mapping[str, Tensor]) -> None:
    """Keep `tensors`; where the folder cannot be written, nothing."""
    if key is None:
        return
    with suppress(OSError), atomic_write(_file(key)) as unfinished:
        unfinished.write_bytes(save(dict(tensors), {CHECKSUM: _checksum(tensors)}))


def _file(key: str) -> Path:
    return cache_folder() / "tokens" / f"{key}.safetensors"


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(name.encode() + tensors[name].numpy().tobytes())
    return sha.hexdigest()
