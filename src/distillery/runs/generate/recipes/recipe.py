"""What a recipe is: requests in rounds, and the rows that their answers become."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from distillery.runs.generate.request import STOP, Answer, Request

Answered = Callable[[Request], Answer | None]  # the answer to a request, if there is one


@dataclass(frozen=True)
class Row:
    """What has become of an answer.

    Attributes:
        content: the row that a data source reads.
        left_out: why it is no training data, in a few words; "": it is.
        remark: what is counted of the rows that are kept, as `have all required words`.
    """

    request: Request
    answer: Answer
    content: Mapping[str, Any]
    left_out: str = ""
    remark: str = ""


class Recipe(Protocol):
    """Makes requests, and rows of the answers.

    Attributes:
        template: what the recipe writes around a prompt, for the record.
        reader: the data config that reads the rows.
    """

    template: str
    reader: str

    def rounds(self, answered: Answered) -> Iterator[Sequence[Request]]:
        """Requests, round by round. A round is made when that before is answered as far as it can be.

        Equal answers make equal rounds: so a command that was stopped asks for what is missing.

        Raises:
            UserError: the prompts cannot be read.
        """

    def rows(self, answered: Answered) -> Iterator[Row]:
        """What becomes of the answers, in the order of the prompts."""


def unfinished(answer: Answer) -> str:
    """Why a text is left out that has not come to its end: its finish reason; else ""."""
    return "" if answer.finish_reason == STOP else answer.finish_reason
