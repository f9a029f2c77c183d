"""How a language model compares with its teachers beyond its score: on the test texts and on texts of its own."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from distillery.config.check_rollouts import ends_of
from distillery.core.roles import FROZEN
from distillery.data.module import Data
from distillery.data.text import TextData
from distillery.data.tokens import IGNORED
from distillery.losses.chunked import map_rows
from distillery.losses.signals import Signals
from distillery.models.evaluation_mode import evaluating
from distillery.models.taps.end_before_head import before_heads
from distillery.models.taps.network import Network
from distillery.models.text.generation import can_generate, generate, greedy, left_padded
from distillery.results.record import NO_NETWORK, RunRecord
from distillery.tasks.calibration import calibration
from distillery.tasks.fidelity import by_place, divergences, predictions
from distillery.tasks.task import Batch, Task
from distillery.teachers.frozen import Teacher
from distillery.training.rollouts import Rollouts

TOKENS = 4096  # of the test split, about, on which networks are compared
FORWARD, ROWS = 2048, 256  # tokens of one forward, and those of which the logits of all networks exist at once
TEXTS, PROMPT, NEW = 32, 16, 64  # texts that are continued, tokens of their prompts and of the continuations at most
SHOWN = 3  # texts whose continuations are shown
POINTS = 8  # of a profile, at least, where the texts have as many tokens; fewer than twice as many
SEED = 0
DIVERGENCES = ("agreement", "kl", "reverse_kl", "acceptance")


def add_fidelity(
    record: RunRecord, student: Network, teachers: Mapping[str, Network], data: Data, task: Task, outputs: int | None
) -> None:
    """Set `RunRecord.fidelity` and `RunRecord.samples` of a language model; of other networks there are none.

    Teachers without a network here, or with other tokens, are not compared, and their entries say why.

    Args:
        outputs: the size of the vocabulary.
    """
    if not task.generates:
        return
    assert isinstance(data, TextData)
    compared: dict[str, Network] = {}
    found: dict[str, Any] = {"student": {}}
    for name, teacher in teachers.items():
        if isinstance(teacher, Teacher) and teacher.role == FROZEN:
            if why := _why_not(teacher, data):
                found[name] = {"not_compared": why}
            else:
                found[name], compared[name] = {}, teacher
    with ExitStack() as modes:
        for network in (student, *compared.values()):
            modes.enter_context(evaluating(network))
        for name, figures in _figures(student, compared, _sample(data), task).items():
            kept = calibration(figures["confidence"], figures["correct"])
            found[name] |= _means(figures, ("entropy", *DIVERGENCES)) | {
                "calibration_error": kept.error,
                "bins": kept.bins,
            }
        if can_generate(student.net):
            given = prompted(data)
            width = max(1, int((given["target"] != IGNORED).sum(1).max()) // POINTS)
            about = {"number": len(given["index"]), "prompt": _prompt_length(data), "places": width}
            found["student"]["texts"] = about | {"new": _new_tokens(data)}
            drawn = Rollouts(new_tokens=_new_tokens(data), ends=ends_of(student.net, data), seed=SEED)
            drawn.vocabulary = outputs
            own = drawn.draw(student.net, [_to(given, student)], 0)[0]
            for kind, batch in (("data_text", given), ("own_text", own)):
                place = (batch["target"] != IGNORED).cumsum(1)[batch["target"] != IGNORED].cpu() - 1
                for name, figures in _figures(student, compared, [batch], task).items():
                    if name in compared:
                        profile = by_place(figures["kl"], place, width)
                        found[name][kind] = _means(figures, DIVERGENCES) | {"kl_by_place": profile}
            record.samples = _samples(student, compared, given, data, outputs)
    record.fidelity = found


def prompted(data: TextData) -> dict[str, Tensor]:
    """Beginnings of up to `TEXTS` test texts, evenly spread, as a batch in which the prompts bear no loss.

    A prompt is what stands before the first token that bears loss; of whole documents it is their first tokens.
    """
    samples = data.splits["test"].indices
    wanted = samples[torch.linspace(0, len(samples) - 1, min(TEXTS, len(samples))).round().long()]
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for batch in data.test_dataloader():
        for row in torch.isin(batch["index"], wanted).nonzero().flatten().tolist():
            length = int(batch["attention_mask"][row].sum())
            starts = (batch["position_ids"][row, :length] == 0).nonzero().flatten().tolist()
            end = starts[1] if len(starts) > 1 else length
            ids, target = batch["input_ids"][row, :end], batch["target"][row, :end].clone()
            begins = int((target != IGNORED).int().argmax())
            prompt = begins if begins > 1 else min(_prompt_length(data), end // 2)
            target[:prompt] = IGNORED
            last = prompt + _new_tokens(data)
            found[int(batch["index"][row])] = ids[:last], target[:last]
    return _batch([found[index] for index in sorted(found)], sorted(found))


def _batch(texts: list[tuple[Tensor, Tensor]], index: list[int]) -> dict[str, Tensor]:
    """Tokens and targets of some texts, padded on the right."""
    lengths = torch.tensor([len(ids) for ids, _ in texts])
    places = torch.arange(int(lengths.max())).expand(len(texts), -1)
    there = places < lengths[:, None]
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad([ids for ids, _ in texts], batch_first=True),
        "attention_mask": there.long(),
        "position_ids": places.where(there, 0),
        "target": pad([target for _, target in texts], batch_first=True, padding_value=IGNORED),
        "bytes": torch.zeros_like(places),
        "index": torch.tensor(index),
    }


def _prompt_length(data: TextData) -> int:
    """Of documents, whose tokens bear loss from the second one on."""
    return max(1, min(PROMPT, (data.limit or PROMPT) // 4))


def _new_tokens(data: TextData) -> int:
    return max(1, min(NEW, (data.limit or NEW) - _prompt_length(data)))


def _why_not(teacher: Teacher, data: TextData) -> str:
    if not teacher.has_network:
        return NO_NETWORK
    if tokenizer := teacher.adapter.own_tokenizer(data.example(1)):
        return f"it reads the tokens of {tokenizer}"
    return f"it {teacher.other_classes}" if teacher.other_classes else ""


def _sample(data: TextData) -> Iterator[dict[str, Tensor]]:
    """Parts of test batches with about `TOKENS` tokens that bear loss in all, evenly spread over the split."""
    total = sum(int((batch["target"] != IGNORED).sum()) for batch in data.test_dataloader())
    share = min(1.0, TOKENS / max(1, total))
    seen = taken = 0
    for batch in data.test_dataloader():
        rows = max(1, FORWARD // batch["input_ids"].shape[1])
        for part in zip(*(values.split(rows) for values in batch.values()), strict=True):
            piece = dict(zip(batch, part, strict=True))
            count = int((piece["target"] != IGNORED).sum())
            seen += count
            if count and taken + count / 2 <= share * seen:
                taken += count
                yield piece


def _figures(
    student: Network, teachers: Mapping[str, Network], batches: Iterable[Batch], task: Task
) -> dict[str, dict[str, Tensor]]:
    """What `predictions` and `divergences` say of each row, by network; no batch's logits outlive it."""
    found: dict[str, list[dict[str, Tensor]]] = {name: [] for name in ("student", *teachers)}
    for batch in batches:
        rows, target = _rows(student, batch, task)
        given = {"target": target, "number": torch.arange(len(target))}
        own = map_rows(lambda part, of: predictions(part.logits, of["target"]), rows, given, ROWS)
        found["student"].append(_on_cpu(own))
        for name, teacher in teachers.items():
            compared = partial(_compared, _rows(teacher, batch, task)[0])
            found[name].append(_on_cpu(map_rows(compared, rows, given, ROWS)))
    return {
        name: {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        for name, parts in found.items()
        if parts
    }


def _compared(teacher: Signals, student: Signals, batch: Batch) -> dict[str, Tensor]:
    """Of rows of the student and, by `number`, of the teacher's."""
    logits = teacher.rows(batch["number"]).computed().logits.to(student.logits.device)
    return predictions(logits, batch["target"]) | divergences(student.logits, logits)


def _rows(network: Network, batch: Batch, task: Task) -> tuple[Signals, Tensor]:
    """The rows that count, without their logits where these can be computed later, and their targets."""
    given = _to(batch, network)
    with before_heads([network]):
        rows, labelled = task.rows(network(given), given)
    return rows, labelled["target"]


def _means(figures: Mapping[str, Tensor], which: Iterable[str]) -> dict[str, Any]:
    """And the number of tokens."""
    means = {key: figures[key].double().mean().item() for key in which if key in figures}
    return {"tokens": len(figures["entropy"]), **means}


def _samples(
    student: Network, teachers: Mapping[str, Network], given: Batch, data: TextData, outputs: int | None
) -> list[dict[str, str]]:
    """The likeliest continuations of the first prompts, token by token: by the student and by each teacher."""
    prompts = (given["target"] != IGNORED).int().argmax(1)[:SHOWN]
    ids, mask = left_padded(given["input_ids"][:SHOWN], prompts)
    tokenizer, lengths = data.loaded_tokenizer, given["attention_mask"].sum(1)
    found = [
        {"prompt": tokenizer.decode(row[:prompt]), "data": tokenizer.decode(row[prompt:length])}
        for row, prompt, length in zip(given["input_ids"], prompts.tolist(), lengths.tolist(), strict=False)
    ]
    for name, network in {"student": student, **teachers}.items():
        if can_generate(network.net):
            ends, device = ends_of(network.net, data), network.device
            made = generate(network.net, ids.to(device), mask.to(device), _new_tokens(data), ends, greedy, outputs)
            for sample, tokens, length in zip(found, made.tokens, made.lengths.tolist(), strict=True):
                sample[name] = tokenizer.decode(tokens[:length])
    return found


def _on_cpu(figures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: values.cpu() for name, values in figures.items()}


def _to(batch: Batch, network: Network) -> dict[str, Tensor]:
    return {name: values.to(network.device) for name, values in batch.items()}
