"""Passages and exercises over a grid of what they are about, for whom, in which form and with which words.

After TinyStories (Eldan & Li 2023) and phi-1 (Gunasekar et al. 2023): what varies is set in the prompt, because a model
that is asked for the same thing again and again writes the same text again and again.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, product
from typing import Annotated

from annotated_types import MinLen
from pydantic import NonNegativeInt, PositiveInt

from distillery.core.errors import UserError
from distillery.runs.generate.clean.words import words
from distillery.runs.generate.recipes.recipe import Answered, Row, unfinished
from distillery.runs.generate.request import Request

Choices = Annotated[list[str], MinLen(1)]
ASK = "Write {form} for {audience} about {topic}.{required} Write nothing else."
REQUIRED = " Use each of these words at least once: {words}."


@dataclass
class Passages:
    """Passages over a grid.

    The cells are drawn without repetition, until each has had its turn. Each passage has words of its own that it must
    use; whether it does is recorded (`missing_words`) and counted. More passages begin with the same ones.

    Args:
        topics, audiences, forms: the grid.
        words: from which each passage's own are drawn.
        required_words: how many.
        passages: to write.
        seed: of all draws.
    """

    topics: Choices
    audiences: Choices
    forms: Choices
    words: list[str]
    required_words: NonNegativeInt = 3
    passages: PositiveInt = 100
    seed: NonNegativeInt = 0

    reader = "plain_text"
    template = ASK + REQUIRED

    def __post_init__(self) -> None:
        if self.required_words > len(set(self.words)):
            raise UserError(f"required_words={self.required_words}: there are only {len(set(self.words))} words.")
        if strange := [word for word in self.words if len(words(word)) != 1]:
            raise UserError(f"words: {strange[0]!r} is not one word.")

    def rounds(self, answered: Answered) -> Iterator[Sequence[Request]]:
        """See `Recipe`."""
        yield self._requests()

    def rows(self, answered: Answered) -> Iterator[Row]:
        """See `Recipe`."""
        for request in self._requests():
            if (answer := answered(request)) is None:
                continue
            used = set(words(answer.text))
            missing = [word for word in request.known["required_words"] if not used >= set(words(word))]
            content = {"text": answer.text, **request.known, "missing_words": missing}
            remark = "" if missing or not self.required_words else "have all required words"
            yield Row(request, answer, content, unfinished(answer), remark)

    def _requests(self) -> list[Request]:
        found = list[Request]()
        for place, (topic, audience, form) in zip(range(self.passages), self._cells(), strict=False):
            own = random.Random(f"{self.seed} words {place}").sample(sorted(set(self.words)), self.required_words)
            required = REQUIRED.format(words=", ".join(own)) if own else ""
            content = ASK.format(form=form, audience=audience, topic=topic, required=required)
            known = {"topic": topic, "audience": audience, "form": form, "required_words": own}
            found.append(Request(place, place, messages=[{"role": "user", "content": content}], known=known))
        return found

    def _cells(self) -> Iterator[tuple[str, str, str]]:
        """All cells in random order, again and again."""
        grid = list(product(self.topics, self.audiences, self.forms))
        for turn in count():
            yield from random.Random(f"{self.seed} cells {turn}").sample(grid, len(grid))
