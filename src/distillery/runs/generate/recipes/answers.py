"""Answers to given prompts."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from pydantic import PositiveInt

from distillery.core.errors import UserError
from distillery.runs.generate.recipes.judge import JUDGE, rating, to_judge
from distillery.runs.generate.recipes.prompts import as_text, conversation_of, other_fields, read_prompts
from distillery.runs.generate.recipes.recipe import Answered, Row, unfinished
from distillery.runs.generate.request import Answer, Request
from distillery.runs.generate.verifiers import Verifier, accepts


@dataclass
class Answers:
    """Answers to given prompts: all of them, or the best one to each.

    Args:
        prompts: a .jsonl or .json file. A row has a `prompt`, or is a conversation as `data=messages` reads it, up to
            its first answer.
        samples: answers to each prompt.
        system: a system prompt for conversations that have none.
        chat: False: the teacher continues the text of `prompt`, as a base model does.
        best_by: which of the samples is kept: the one that the teacher rates highest, when it is asked in a second
            round (`judge`), of several the first; or the first that the `verifier` accepts. None: all.
        verifier: of answers, see `verifiers.py`.
        encoding: of the file; None: as its byte order mark says, else UTF-8.
    """

    prompts: str
    samples: PositiveInt = 1
    system: str | None = None
    chat: bool = True
    best_by: Literal["judge", "verifier"] | None = None
    verifier: Verifier | None = None
    encoding: str | None = None

    reader = "messages"

    def __post_init__(self) -> None:
        if self.best_by == "judge" and not self.chat:
            raise UserError("best_by=judge: a model that continues texts rates none. Set chat=true.")
        if self.best_by == "verifier" and self.verifier is None:
            raise UserError("best_by=verifier: choose one, such as verifier=numeric.")

    @property
    def template(self) -> str:
        judge = {"judge": JUDGE} if self.best_by == "judge" else {}
        return json.dumps({"system": self.system, "chat": self.chat, **judge})

    def rounds(self, answered: Answered) -> Iterator[Sequence[Request]]:
        """See `Recipe`."""
        requests = self._requests()
        if self.best_by == "verifier":
            for request in requests:
                self._accepts(request, "")  # whatever is wrong with it is told before anything is asked
        yield requests
        if self.best_by == "judge":
            pairs = ((request, answered(request)) for request in requests)
            yield [to_judge(request, answer) for request, answer in pairs if answer is not None and answer.whole]

    def rows(self, answered: Answered) -> Iterator[Row]:
        """See `Recipe`."""
        for _, requests in groupby(self._requests(), key=lambda request: request.place):
            pairs = ((request, answered(request)) for request in requests)
            yield from self._best([(request, answer) for request, answer in pairs if answer is not None], answered)

    def _requests(self) -> list[Request]:
        found = read_prompts(self.prompts, self.encoding)
        return [self._request(*each, sample) for each in enumerate(found) for sample in range(self.samples)]

    def _request(self, place: int, row: Mapping[str, Any], sample: int) -> Request:
        known = other_fields(row)
        if self.chat:
            return Request(place, sample, messages=conversation_of(row, self.system), known=known)
        if "messages" in row:
            raise UserError(f"chat=false: prompt {place} of {self.prompts} is a conversation, and not a text.")
        return Request(place, sample, text=row["prompt"], known=known)

    def _best(self, found: Sequence[tuple[Request, Answer]], answered: Answered) -> Iterator[Row]:
        """The rows of the answers to one prompt."""
        points = [self._points(*each, answered) for each in found]
        best = max((each for each in points if each is not None), default=None)
        chosen = None if best is None else points.index(best)  # of several the first
        for place, (request, answer) in enumerate(found):
            content, left_out = request.row(answer.text), unfinished(answer)
            if self.best_by == "judge" and points[place] is not None:
                content["rating"] = points[place]
            if self.best_by and not left_out and place != chosen:
                none = "no rating" if self.best_by == "judge" else "not accepted"
                left_out = none if points[place] is None else "not the best"
            yield Row(request, answer, content, left_out)

    def _points(self, request: Request, answer: Answer, answered: Answered) -> int | None:
        """How good an answer is; None: it is not to be kept, or nothing is known of it."""
        if unfinished(answer) or self.best_by is None:
            return None
        if self.best_by == "judge":
            return rating(answered(to_judge(request, answer)))
        return 1 if self._accepts(request, answer.text) else None

    def _accepts(self, request: Request, answer: str) -> bool:
        assert self.verifier is not None
        row = {"prompt": request.text or as_text(request.messages), **request.known}
        return accepts(self.verifier, answer, row, f"{self.prompts}, prompt {request.place}")
