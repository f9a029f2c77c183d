"""Texts as a source gives them: not yet cut into tokens."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Texts:
    """N texts, or N pairs of texts, addressed by their position.

    With `labels`, a text is given as its words, and has a label for each word: for token classification.
    """

    first: Sequence[str] | Sequence[Sequence[str]]
    second: Sequence[str] | None = None
    labels: Sequence[Sequence[int]] | None = None

    def __len__(self) -> int:
        return len(self.first)

    def content(self) -> bytes:
        """What identifies the texts, for the fingerprint."""
        sha = hashlib.sha256()
        for part in (self.first, self.second, self.labels):
            for item in part or ():
                sha.update(repr(item).encode() + b"\n")
        return sha.digest()
