"""Instructions grown from seeds, and their answers (Self-Instruct, Wang et al. 2023)."""

import hashlib
import heapq
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Self

from annotated_types import Gt, Le
from pydantic import NonNegativeInt, PositiveInt

from distillery.core.errors import UserError
from distillery.runs.generate.clean.duplicates import NearDuplicateIndex
from distillery.runs.generate.clean.words import words
from distillery.runs.generate.recipes.prompts import as_text, conversation_of, read_prompts
from distillery.runs.generate.recipes.recipe import Answered, Row, unfinished
from distillery.runs.generate.request import EMPTY, Answer, Request

ASK = (
    "Here are {number} tasks:\n\n{tasks}\n\nWrite one new task of the same kind, about something else. It must be "
    "understood without these tasks. Write the task alone, without its solution."
)
NUMBERING = re.compile(r"^\s*(?:(?:new\s+)?task\s*\d*\s*[:.]|\d+[.)])\s*", re.IGNORECASE)
WORDS = 2  # of the n-grams by which instructions are compared


@dataclass
class Instructions:
    """New instructions, for each of which some known ones are shown; then answers to those that are kept.

    An instruction is kept if it is no near-duplicate of a seed, of a held-out instruction, or of one that was kept
    before. Each generation is shown seeds and what the generations before have added.

    Args:
        seeds: a .jsonl or .json file. A row has a `prompt`, or is in another format of `Answers` with a single message.
        instructions: how many are asked for, in all generations together.
        shown: how many known instructions each request shows.
        generations: rounds of growing.
        threshold: the Jaccard similarity of their sets of word pairs from which two instructions are near-duplicates;
            None: all are kept.
        held_out: a file like `seeds`. Its instructions, and seeds like them, are not shown, and nothing like them is
            kept. None: there is none.
        samples: answers to each instruction.
        system: a system prompt for the answers.
        seed: of the draws.
        encoding: of the files; None: as their byte order marks say, else UTF-8.
    """

    seeds: str
    instructions: PositiveInt = 100
    shown: PositiveInt = 4
    generations: PositiveInt = 1
    threshold: Annotated[float, Gt(0), Le(1)] | None = 0.7
    held_out: str | None = None
    samples: PositiveInt = 1
    system: str | None = None
    seed: NonNegativeInt = 0
    encoding: str | None = None

    reader = "messages"

    @property
    def template(self) -> str:
        return f"{self.system or ''}{ASK}"

    def rounds(self, answered: Answered) -> Iterator[Sequence[Request]]:
        """See `Recipe`."""
        grown = list[_Grown]()
        yield from self._grow(answered, grown)
        yield [request for each in grown if not each.left_out for request in self._to_answer(each)]

    def rows(self, answered: Answered) -> Iterator[Row]:
        """See `Recipe`."""
        grown = list[_Grown]()
        for _ in self._grow(answered, grown):
            pass
        for each in grown:
            if each.left_out:
                content = {"prompt": each.text} | ({"like": each.like} if each.like else {})
                yield Row(each.request, each.answer, content, each.left_out)
                continue
            for request in self._to_answer(each):
                if (answer := answered(request)) is not None:
                    yield Row(request, answer, request.row(answer.text), unfinished(answer))

    def _grow(self, answered: Answered, grown: list["_Grown"]) -> Iterator[Sequence[Request]]:
        """The requests for instructions, generation by generation; what they have brought is added to `grown`."""
        known = _Known(self.threshold)
        for text in [] if self.held_out is None else self._read("held_out", self.held_out):
            known.add(text)
        shown = [text for text in self._read("seeds", self.seeds) if known.like(text) is None]
        if not shown:
            raise UserError(f"seeds={self.seeds}: all of them are held out.")
        for text in shown:
            known.add(text)
        for generation in range(self.generations):
            first, end = (self.instructions * number // self.generations for number in (generation, generation + 1))
            requests = [self._to_grow(place, shown) for place in range(first, end)]
            yield requests
            pairs = ((request, answered(request)) for request in requests)
            found = [_Grown.of(request, answer, known) for request, answer in pairs if answer is not None]
            grown += found
            shown = [*shown, *(each.text for each in found if not each.left_out)]

    def _read(self, setting: str, path: str) -> list[str]:
        """The instructions of a file."""
        found = [conversation_of(row) for row in read_prompts(path, self.encoding, setting)]
        if longer := next((messages for messages in found if len(messages) > 1), None):
            raise UserError(f"{setting}={path}: an instruction is a single message, not {as_text(longer)[:80]!r}.")
        return [as_text(messages) for messages in found]

    def _to_grow(self, place: int, known: Sequence[str]) -> Request:
        """The request for an instruction. It shows those whose hashes with its number are the lowest.

        So most requests are the same as before if there is one more to be shown, and need not be sent again.
        """

        def draw(text: str) -> bytes:
            return hashlib.blake2b(f"{self.seed} {place} {text}".encode("utf-8", "surrogatepass")).digest()

        chosen = heapq.nsmallest(self.shown, known, key=draw)
        tasks = "\n\n".join(f"Task {number}: {text}" for number, text in enumerate(chosen, 1))
        content = ASK.replace("{number}", str(len(chosen))).replace("{tasks}", tasks)
        return Request(place, place, messages=[{"role": "user", "content": content}])

    def _to_answer(self, grown: "_Grown") -> list[Request]:
        messages = conversation_of({"prompt": grown.text}, self.system)
        return [Request(grown.request.place, sample, messages=messages) for sample in range(self.samples)]


@dataclass(frozen=True)
class _Grown:
    """An instruction that the teacher has written; why it is not kept, and what it is `like`."""

    request: Request
    answer: Answer
    text: str
    left_out: str = ""
    like: str | None = None

    @classmethod
    def of(cls, request: Request, answer: Answer, known: "_Known") -> Self:
        """The instruction in an answer, which is added to the `known` ones if it is kept."""
        text = NUMBERING.sub("", answer.text).strip()
        left_out = "" if answer.whole else answer.finish_reason
        left_out = left_out or ("" if text else EMPTY)
        if left_out:
            return cls(request, answer, text, left_out)
        if (like := known.like(text)) is not None:
            return cls(request, answer, text, "near-duplicate instruction", like)
        known.add(text)
        return cls(request, answer, text)


class _Known:
    """Instructions, among which like ones are found."""

    def __init__(self, threshold: float | None) -> None:
        self._texts: list[str] = []
        self._exact: dict[Sequence[str], str] = {}
        self._near = None if threshold is None else NearDuplicateIndex(WORDS, threshold)

    def like(self, text: str) -> str | None:
        """One with the same words, or the nearest that is near enough."""
        if (same := self._exact.get(words(text))) is not None or self._near is None:
            return same
        found = self._near.find(text, lambda number: (text, self._texts[number]))
        return None if found is None else self._texts[found[0]]

    def add(self, text: str) -> None:
        self._exact.setdefault(words(text), text)
        if self._near is not None:
            self._near.add(len(self._texts), text)
        self._texts.append(text)
