"""What writes texts: a server that is asked for them, or a network in this process."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from distillery.runs.generate.request import Answer, Request


@dataclass(frozen=True)
class Failure:
    """A request that has no answer, for a reason that is in the request itself."""

    reason: str


class Writer(Protocol):
    """A teacher that writes texts.

    Attributes:
        name: of its model.
    """

    name: str

    @property
    def identity(self) -> Mapping[str, Any]:
        """What an answer depends on besides the request: the `model`, and the parameters of sampling."""

    @property
    def most_tokens(self) -> int | None:
        """The most tokens of an answer; None: unknown."""

    def check(self, requests: Sequence[Request]) -> None:
        """Refuse what cannot be written, before anything is asked.

        Raises:
            UserError: what it is.
        """

    def write(
        self, requests: Iterable[Request], keep: Callable[[Request, Answer], None]
    ) -> Iterator[tuple[Request, Answer | Failure]]:
        """The answers as they come, each of which was handed to `keep` before."""
