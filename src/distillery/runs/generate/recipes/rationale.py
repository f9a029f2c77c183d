"""Rationales that lead to the right answer (Hsieh et al. 2023; rejection sampling as in STaR, Zelikman et al. 2022)."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import PositiveInt

from distillery.runs.generate.recipes.prompts import conversation_of, other_fields, read_prompts
from distillery.runs.generate.recipes.recipe import Answered, Row, unfinished
from distillery.runs.generate.request import Answer, Request
from distillery.runs.generate.verifiers import Verifier, accepts

ASK = (
    "\n\nExplain your reasoning step by step. Then write the final answer alone on a last line that begins with "
    "'Answer:'."
)
FINAL = re.compile(r"^\W*answer\W*:\W*?(.+)$", re.IGNORECASE | re.MULTILINE)


@dataclass
class Rationale:
    """A rationale and an answer to each prompt, kept only where a verifier accepts the answer.

    Each round asks for one more text to the prompts that have no right answer yet. The row has the prompt without the
    request for a rationale; reasoning that the server returns beside the text is put before it, in <think>…</think>.

    Args:
        prompts: a .jsonl or .json file, as of `Answers`; what the verifier reads stands beside the prompt.
        verifier: of the final answer, see `verifiers.py`.
        samples: rounds at most.
        system: a system prompt for conversations that have none.
        encoding: of the file; None: as its byte order mark says, else UTF-8.
    """

    prompts: str
    verifier: Verifier
    samples: PositiveInt = 1
    system: str | None = None
    encoding: str | None = None

    reader = "messages"

    @property
    def template(self) -> str:
        return f"{self.system or ''}{ASK}"

    def rounds(self, answered: Answered) -> Iterator[Sequence[Request]]:
        """See `Recipe`."""
        rows = read_prompts(self.prompts, self.encoding)
        for place, row in enumerate(rows):
            self._accepts("", place, row)  # whatever is wrong with it is told before anything is asked
        going_on = list(range(len(rows)))
        for sample in range(self.samples):
            requests = {place: self._request(place, sample, rows[place]) for place in going_on}
            yield list(requests.values())
            answers = {place: answered(request) for place, request in requests.items()}
            going_on = [
                place
                for place, answer in answers.items()
                if answer is not None and self._why_not(answer, place, rows[place])
            ]
            if not going_on:
                return

    def rows(self, answered: Answered) -> Iterator[Row]:
        """See `Recipe`."""
        for place, row in enumerate(read_prompts(self.prompts, self.encoding)):
            for sample in range(self.samples):
                request = self._request(place, sample, row)
                if (answer := answered(request)) is None:
                    break
                left_out = self._why_not(answer, place, row)
                thought = f"<think>\n{answer.reasoning}\n</think>\n\n" if answer.reasoning else ""
                said = {"role": "assistant", "content": thought + answer.text}
                messages = [*conversation_of(row, self.system), said]
                yield Row(request, answer, {"messages": messages, **other_fields(row)}, left_out)
                if not left_out:
                    break

    def _request(self, place: int, sample: int, row: Mapping[str, Any]) -> Request:
        *before, last = conversation_of(row, self.system)
        asked = {**last, "content": last["content"] + ASK}
        return Request(place, sample, messages=[*before, asked], known=other_fields(row))

    def _why_not(self, answer: Answer, place: int, row: Mapping[str, Any]) -> str:
        """Why a text is left out; "": its answer is right."""
        if reason := unfinished(answer):
            return reason
        found = FINAL.findall(answer.text)
        if not found:
            return "no final answer"
        return "" if self._accepts(found[-1].strip(" *`$"), place, row) else "wrong answer"

    def _accepts(self, final: str, place: int, row: Mapping[str, Any]) -> bool:
        return accepts(self.verifier, final, row, f"{self.prompts}, prompt {place}")
