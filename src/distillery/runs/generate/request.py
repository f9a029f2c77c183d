"""What a teacher is asked for, and what it has answered."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

STOP, LENGTH = "stop", "length"  # finish reasons of a text that has come to its end, and of one that was cut off
EMPTY, REFUSED = "empty", "refusal"  # ours, of texts that servers say have come to their end
PLANNED = "planned"  # ours, of what stands for a text that is not written yet
OWN = 16  # characters of a key that no other begins with
CHAT_OVERHEAD = 16  # tokens that a chat template may write around a message


@dataclass(frozen=True, eq=False)
class Request:
    """One text to be written.

    Attributes:
        place: of the prompt in the recipe's order.
        sample: which of several texts for the same prompt.
        messages: of a conversation that the teacher answers; empty: it continues `text`.
        text: what it continues.
        known: further fields of the row that the text becomes part of.
    """

    place: int
    sample: int
    messages: Sequence[Mapping[str, Any]] = ()
    text: str = ""
    known: Mapping[str, Any] = field(default_factory=dict)

    def key(self, about: Mapping[str, Any]) -> str:
        """Identifies the request: the SHA-256 of the prompt, the number of the sample, and what is `about` all.

        Args:
            about: the model and its sampling parameters.
        """
        given = {"messages": list(self.messages), "text": self.text, "sample": self.sample}
        given |= {"tools": self.known["tools"]} if "tools" in self.known else {}
        content = json.dumps({**given, **about}, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def most_prompt_tokens(self) -> int:
        """A number of tokens that the prompt cannot exceed: a token stands for at least one byte."""
        texts = [json.dumps(dict(message), ensure_ascii=False) for message in self.messages] or [self.text]
        texts += [json.dumps(self.known["tools"])] if "tools" in self.known else []
        return sum(len(text.encode("utf-8", "surrogatepass")) + CHAT_OVERHEAD for text in texts)

    def row(self, text: str) -> dict[str, Any]:
        """The row that `data=messages` reads, or `data=plain_text` of a document."""
        if self.messages:
            return {"messages": [*map(dict, self.messages), {"role": "assistant", "content": text}], **self.known}
        if self.known.get("document"):
            return {"text": self.text + text}
        return {"prompt": self.text, "completion": text, **self.known}


@dataclass(frozen=True)
class Answer:
    """A text that a teacher has written.

    Attributes:
        text: without the reasoning that some servers return beside it.
        finish_reason: `stop`, `length`, `content_filter`, …, as the server says; `empty` and `refusal` are ours.
        model: as the server returned it.
        fingerprint: the server's `system_fingerprint`.
        created: when, in seconds since 1970.
        prompt_tokens, completion_tokens: as the server counted them.
        reasoning: what it thought before.
        logprobs: of each token its bytes in hexadecimal, its log-probability, and those of the likeliest tokens.
    """

    text: str
    finish_reason: str
    model: str
    created: float
    prompt_tokens: int
    completion_tokens: int
    fingerprint: str | None = None
    reasoning: str | None = None
    logprobs: Sequence[Any] | None = None

    @property
    def whole(self) -> bool:
        """Whether the text has come to its end, or may do so."""
        return self.finish_reason in (STOP, PLANNED)

    def to_json(self) -> str:
        return json.dumps({key: value for key, value in asdict(self).items() if value is not None}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))


def planned(key: str, tokens: int | None) -> Answer:
    """Stands for the answer to the request with this key: a text of its own, with a byte for each token it may have."""
    size = max(tokens or 0, OWN)
    return Answer((key * (size // len(key) + 1))[:size], PLANNED, "", 0.0, 0, size)
