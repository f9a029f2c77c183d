"""The files that answers become: rows that data sources read, each with where it is from."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distillery.core.files import atomic_write
from distillery.runs.generate.request import STOP, Answer, Request

ANSWERS, LEFT_OUT, FAILED, LOGPROBS = "answers.jsonl", "left_out.jsonl", "failed.jsonl", "logprobs.jsonl"


def write_files(
    out: Path, written: Iterable[tuple[Request, Answer]], failed: Mapping[str, str], about: Mapping[str, Any]
) -> Counter[str]:
    """Write the rows to `out`, in the order of the prompts; each file whole or not at all.

    `answers.jsonl` has the texts that have come to their end, `left_out.jsonl` the others, with their finish reasons.
    `logprobs.jsonl` has those of the first whose answers came with log-probabilities, and these. `failed.jsonl` has the
    prompts without an answer, and why.

    Args:
        written: the requests and their answers.
        failed: why a prompt, in JSON, has no answer.
        about: what all rows say of their origin.

    Returns: how many answers have which finish reason.
    """
    counts = Counter[str]()
    with _rows(out / ANSWERS) as kept, _rows(out / LEFT_OUT) as left, _rows(out / LOGPROBS) as log:
        for request, answer in written:
            counts[answer.finish_reason] += 1
            row = request.row(answer.text)
            (kept if answer.finish_reason == STOP else left)({**row, **provenance(request, answer, about)})
            if answer.logprobs is not None and answer.finish_reason == STOP:
                log({**row, "logprobs": answer.logprobs})
    with _rows(out / FAILED) as add:
        for prompt, reason in failed.items():
            add({**json.loads(prompt), "reason": reason})
    for name in (LEFT_OUT, LOGPROBS, FAILED):
        if not (out / name).stat().st_size:
            (out / name).unlink()
    return counts


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
