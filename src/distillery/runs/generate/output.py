"""The files that answers become: rows that data sources read, each with where it is from."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distillery.core.files import atomic_write
from distillery.runs.generate.recipes.recipe import Row
from distillery.runs.generate.request import STOP, Answer, Request

ANSWERS, LEFT_OUT, FAILED, LOGPROBS = "answers.jsonl", "left_out.jsonl", "failed.jsonl", "logprobs.jsonl"
SHOWN = 80  # characters of an example


class Outcome(Counter[str]):
    """How many texts are kept (`stop`), and how many are left out for which reason.

    Attributes:
        remarks: how many of those that are kept have which remark.
        examples: by reason, the beginning of a whole text that was left out for it.
        failed, left: how many prompts failed, and how many were not asked.
    """

    def __init__(self) -> None:
        super().__init__()
        self.remarks, self.examples = Counter[str](), dict[str, str]()
        self.failed = self.left = 0

    def add(self, row: Row) -> None:
        """Count a row."""
        self[row.left_out or STOP] += 1
        if row.remark and not row.left_out:
            self.remarks[row.remark] += 1
        if row.left_out and row.answer.finish_reason != row.left_out:
            self.examples.setdefault(row.left_out, repr(" ".join(row.answer.text.split())[:SHOWN]))


def write_files(out: Path, rows: Iterable[Row], failed: Mapping[str, str], about: Mapping[str, Any]) -> Outcome:
    """Write the rows to `out`, in the order of the prompts; each file whole or not at all.

    `answers.jsonl` has those that are kept, `left_out.jsonl` the others, and why. `logprobs.jsonl` has those of the
    first whose answers came with log-probabilities, and these. `failed.jsonl` has the prompts without an answer, and
    why.

    Args:
        failed: why a prompt, in JSON, has no answer.
        about: what all rows say of their origin.

    Returns: what was counted.
    """
    outcome = Outcome()
    with _rows(out / ANSWERS) as kept, _rows(out / LEFT_OUT) as left, _rows(out / LOGPROBS) as log:
        for row in rows:
            outcome.add(row)
            whole = {**row.content, **provenance(row.request, row.answer, about)}
            if row.left_out:
                left({**whole, "left_out": row.left_out})
                continue
            kept(whole)
            if row.answer.logprobs is not None:
                log({**row.content, "logprobs": row.answer.logprobs})
    with _rows(out / FAILED) as add:
        for prompt, reason in failed.items():
            add({**json.loads(prompt), "reason": reason})
    for name in (LEFT_OUT, LOGPROBS, FAILED):
        if not (out / name).stat().st_size:
            (out / name).unlink()
    return outcome


def provenance(request: Request, answer: Answer, about: Mapping[str, Any]) -> dict[str, Any]:
    """Where a row is from."""
    said = {
        "index": request.place,
        "sample": request.sample,
        "finish_reason": answer.finish_reason,
        "model": answer.model,
        "system_fingerprint": answer.fingerprint,
        "created": datetime.fromtimestamp(answer.created, UTC).isoformat(timespec="seconds"),
        "usage": {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens},
        "reasoning": answer.reasoning,
        **about,
    }
    return {key: value for key, value in said.items() if value is not None}


@contextmanager
def _rows(path: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Within: what it gives adds a row to a JSON Lines file, which is there at the end, whole."""
    with atomic_write(path) as unfinished, unfinished.open("w", encoding="utf-8", errors="replace") as file:

        def add(row: Mapping[str, Any]) -> None:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

        yield add
