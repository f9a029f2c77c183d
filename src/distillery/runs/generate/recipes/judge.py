"""A model's rating of an answer."""

import re

from distillery.runs.generate.recipes.prompts import as_text
from distillery.runs.generate.request import STOP, Answer, Request

JUDGE = """Rate an answer from 1 (useless or wrong) to 10 (correct, complete and clear).

[Question]
{question}

[Answer]
{answer}

Reply with the number alone."""
RATING = re.compile(r"\s*(?:rating:\s*)?(10|[1-9])(?:\s*/\s*10)?\.?\s*", re.IGNORECASE)


def to_judge(request: Request, answer: Answer) -> Request:
    """The request for a rating of this answer."""
    content = JUDGE.replace("{question}", as_text(request.messages)).replace("{answer}", answer.text)
    return Request(request.place, request.sample, messages=[{"role": "user", "content": content}])


def rating(answer: Answer | None) -> int | None:
    """From 1 to 10; None: there is none, or something else was said."""
    found = None if answer is None or answer.finish_reason != STOP else RATING.fullmatch(answer.text)
    return int(found[1]) if found else None
