"""How a classifier compares with its teachers beyond its score: in the probabilities of classes and in the features."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.core.roles import FROZEN
from distillery.data.module import Data
from distillery.models.taps.network import Network, watch
from distillery.results.layout import PROBABILITIES
from distillery.results.record import RunRecord
from distillery.tasks.calibration import calibration
from distillery.tasks.cka import cka
from distillery.tasks.fidelity import divergences, predictions
from distillery.tasks.task import Batch, Task
from distillery.teachers.frozen import Teacher

SAMPLES = 1024  # of the test split at most, on which features are compared; and so many rows of them
OF_TEACHER = ("agreement", "kl", "reverse_kl")


def add_class_fidelity(
    record: RunRecord,
    predicted: Mapping[str, Tensor],
    student: Network,
    teachers: Mapping[str, Network],
    data: Data,
    task: Task,
) -> None:
    """Set `RunRecord.fidelity` of a network that predicts classes; of pixels, whose probabilities are not kept, not.

    Args:
        predicted: what `predictions.npz` has, of the student and of the teachers.
        teachers: those that are networks here are compared by their features, too.
    """
    if task.prediction != "class" or f"student{PROBABILITIES}" not in predicted:
        return
    frozen = {name: each for name, each in teachers.items() if isinstance(each, Teacher) and each.role == FROZEN}
    record.fidelity = {"student": {}, **{name: {} for name in frozen}}
    logits = {
        name: _log(predicted[name + PROBABILITIES]) for name in record.fidelity if name + PROBABILITIES in predicted
    }
    for name, own in logits.items():
        figures = predictions(own, predicted["target"])
        kept = {"entropy": figures["entropy"].double().mean().item()}
        if name != "student":
            divergence = divergences(logits["student"], own)
            kept |= {key: divergence[key].double().mean().item() for key in OF_TEACHER}
        bins = calibration(figures["confidence"], figures["correct"]).bins
        record.fidelity[name] = {task.rows_are: len(own), **kept, "bins": bins}
    # Of tokens, the rows of a teacher with a tokenizer of its own are others; then it has no predictions.
    same_rows = [name for name in frozen if task.rows_are == "samples" or name in logits]
    compared = {name: frozen[name] for name in same_rows if frozen[name].has_network}
    ours = head_inputs(student, data, task) if compared else None
    for name, teacher in compared.items():
        theirs = head_inputs(teacher, data, task)
        record.fidelity[name]["cka"] = None if ours is None or theirs is None else cka(ours, theirs)


def _log(probabilities: Tensor) -> Tensor:
    """Logarithms of probabilities, finite where one is rounded to 0."""
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()


def head_inputs(network: Network, data: Data, task: Task) -> Tensor | None:
    """What the network's head reads for up to `SAMPLES` rows of the test split, evenly spread: [N, D] on the CPU.

    None: it has no linear head, or one that reads more than one vector for a row.
    """
    found: list[Tensor] = []
    for batch in sample(data):
        batch = {name: values.to(network.device) for name, values in batch.items()}
        try:
            head = network.head(batch)
        except UserError:
            return None
        read: list[Tensor] = []

        def note(path: str, inputs: Any, _: Tensor, head: str = head, read: list[Tensor] = read) -> None:
            if path == head:
                read.append(inputs[0])

        signals = watch(network, batch, note)
        if read[-1].shape[:-1] != signals.logits.shape[:-1]:
            return None
        found.append(task.rows(replace(signals, logits=read[-1]), batch)[0].logits.float().cpu())
    rows = torch.cat(found)
    return rows[_spread(len(rows))]


def sample(data: Data) -> Iterator[Batch]:
    """Parts of test batches with up to `SAMPLES` samples in all, evenly spread over the split."""
    indices = data.splits["test"].indices
    wanted = indices[_spread(len(indices))]
    for batch in data.test_dataloader():
        chosen = torch.isin(batch["index"], wanted)
        if chosen.any():
            yield {name: values[chosen] for name, values in batch.items()}


def _spread(length: int) -> Tensor:
    """Up to `SAMPLES` places, evenly spread."""
    return torch.linspace(0, length - 1, min(SAMPLES, length)).round().long()
