"""Texts that a teacher writes, in a file that data sources read (Kim and Rush 2016, sequence-level distillation)."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from distillery.config.writer import LAW
from distillery.core.errors import UserError
from distillery.core.files import atomic_write
from distillery.core.terminal import plain_console
from distillery.data.text import TextData
from distillery.data.tokens import IGNORED
from distillery.runs.generate.prompts import Prompt, prompts_of, row_of
from distillery.teachers.frozen import Teacher
from distillery.training.rollouts import Rollouts

STOP, LENGTH, EMPTY = "stop", "length", "empty"


def write_texts(
    teacher: Teacher,
    data: TextData,
    law: Rollouts,
    out: Path,
    positions: int | None = None,
    prompt_tokens: int = 32,
    samples: int = 1,
    at_once: int = 8,
) -> Counter[str]:
    """Have the teacher continue the prompts of the training texts; one row a text, in the order of their lengths.

    Rows whose text has ended go to `out`, the others to `<out>.left_out.jsonl`: texts that reached `law.new_tokens`
    (finish_reason `length`) and empty ones. What was written before is kept: a file is continued where it ends, and a
    text is a function of the seed, the prompt and its number, whatever is written beside it (but for rounding).

    Args:
        law: how tokens are drawn, with the tokens that end a text.
        positions: of the teacher; prompts that leave too few are not continued.
        prompt_tokens: of a document.
        samples: texts for each prompt.
        at_once: texts that are written together.

    Returns: how many texts have which finish reason; `too long`: prompts that were not continued.

    Raises:
        UserError: `out` is of another teacher, of other prompts or of another law.
    """
    prompts = [prompt for prompt in prompts_of(data, prompt_tokens) if prompt.ids]
    fit = [each for each in prompts if positions is None or len(each.ids) + law.new_tokens <= positions]
    _same_or_refused(out.with_suffix(".about.json"), _about(teacher, law, fit, samples))
    counts = Counter({"too long": len(prompts) - len(fit)})
    files = {reason: _left_out(out) if reason != STOP else out for reason in (STOP, LENGTH, EMPTY)}
    done = set[tuple[int, int]]()
    for path in dict.fromkeys(files.values()):
        for row in _whole_rows(path):
            done.add((row["index"], row["sample"]))
            counts[row["finish_reason"]] += 1
    ordered = sorted(fit, key=lambda prompt: len(prompt.ids))
    chunks: list[tuple[int, Sequence[Prompt]]] = []
    for sample in range(samples):
        left = [prompt for prompt in ordered if (prompt.position, sample) not in done]
        chunks += [(sample, left[at : at + at_once]) for at in range(0, len(left), at_once)]
    for sample, chunk in track(chunks, "Writing", transient=True, disable=not plain_console().is_terminal):
        made = law.draw(teacher.net, [_batch(chunk, teacher.device)], sample)[0]
        for prompt, target in zip(chunk, made["target"], strict=True):
            tokens = target[target != IGNORED].tolist()
            ended = tokens[-1] in (law.ends or ())
            kept = tokens[:-1] if ended else tokens
            reason = LENGTH if not ended else STOP if kept else EMPTY
            row = row_of(prompt, kept, data.loaded_tokenizer)
            said = {"index": prompt.position, "sample": sample, "finish_reason": reason, "tokens": len(tokens)}
            with files[reason].open("a", encoding="utf-8") as file:
                file.write(json.dumps({**row, **said}, ensure_ascii=False) + "\n")
            counts[reason] += 1
    return counts


def _batch(prompts: Sequence[Prompt], device: torch.device) -> dict[str, Tensor]:
    """A batch whose first token that bears loss stands behind the prompt."""
    longest = max(len(prompt.ids) for prompt in prompts) + 1
    ids, target = torch.zeros(len(prompts), longest, dtype=torch.int64), torch.full((len(prompts), longest), IGNORED)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt.ids)] = torch.tensor(prompt.ids)
        target[row, len(prompt.ids)] = 0
    index = torch.tensor([prompt.position for prompt in prompts])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "target": target, "index": index}
    return {name: value.to(device) for name, value in batch.items()}


def _about(teacher: Teacher, law: Rollouts, prompts: Sequence[Prompt], samples: int) -> dict[str, Any]:
    """What the texts depend on."""
    content = hashlib.sha256(json.dumps([(prompt.position, prompt.ids) for prompt in prompts]).encode())
    settings = {key: getattr(law, key) for key in (*LAW, "ends")}
    own = {"teacher": teacher.source, "teacher_sha256": teacher.sha256, "prompts_sha256": content.hexdigest()}
    return {**own, "prompts": len(prompts), "samples": samples, **settings}


def _same_or_refused(path: Path, about: dict[str, Any]) -> None:
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        free = {"samples", "teacher"}  # more of them are added; the same teacher may lie elsewhere
        if differ := [key for key in about if key not in free and before.get(key) != about[key]]:
            raise UserError(
                f"{path} says that the existing texts have another {differ[0]}: {before.get(differ[0])}, not "
                f"{about[differ[0]]}. Write to another file (out=…), or remove the existing ones."
            )
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _whole_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, from which a last line that was not finished is removed."""
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with path.open("rb+") as file:
            file.truncate(len(whole))
    for line in whole.split(b"\n")[:-1]:
        yield json.loads(line)


def _left_out(out: Path) -> Path:
    return out.with_suffix(".left_out.jsonl")
