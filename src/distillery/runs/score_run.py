"""What a run leaves behind when training has ended: scores, costs, predictions, the exported student."""

import math
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distillery.config.build import Parts
from distillery.config.students import exported_student
from distillery.core.files import atomic_write
from distillery.core.roles import FROZEN, PLACE, SELF, STAGE
from distillery.data.module import Data
from distillery.models.cost import count_embedding_parameters, count_flops, count_parameters, measure_latency
from distillery.models.taps.network import Network
from distillery.models.weights import save_weights, unwrap, weights_hash
from distillery.results.layout import BEST, CHECKPOINTS, PREDICTIONS, PROBABILITIES, STUDENT
from distillery.results.record import RunRecord
from distillery.runs.class_fidelity import add_class_fidelity
from distillery.tasks.calibration import calibration_figures
from distillery.tasks.evaluate import Evaluation, evaluate
from distillery.tasks.task import Task
from distillery.teachers.ensemble import Ensemble
from distillery.teachers.frozen import Teacher
from distillery.teachers.linear_probe import probe_of
from distillery.teachers.peer import Peer


def score_run(
    record: RunRecord,
    parts: Parts,
    epoch: int,
    folder: Path,
    teachers: Mapping[str, Network],
    ensemble: Ensemble | None = None,
) -> None:
    """Complete `record` and the run folder from the student as it is after `epoch` epochs, or from its average.

    Nothing is selected on the test split: `last` is the student of the last epoch, `best` the checkpoint that
    scored highest on validation (where the data have a validation split). Where the student's average is scored, the
    student itself is `unaveraged`.

    Args:
        teachers: the teachers to score, of all stages; a student of an earlier stage is called `stage:<name>`.
        ensemble: of students of several stages; it is scored, too.
    """
    if parts.cfg.compile:
        torch.compiler.reset()  # torch compiles a function eight times at most, and batches are others here
    trained, data = parts.distiller.evaluated, parts.data
    student = exported_student(parts.cfg.student, trained)
    data.setup("test")
    last, test = _scores(parts, student)
    record.remarks = list(dict.fromkeys([*record.remarks, *parts.distiller.remarks]))  # each stage has its own
    record.environment["scored_on"] = student.device.type
    record.metrics["last"] = {"epoch": epoch, **last}
    record.cost = cost_of(student, data)
    save_weights(student.net, folder / STUDENT)
    record.student_sha256 = weights_hash(student.net)

    predictions = {"index": test.index, "target": test.target} | _predictions("student", test)
    for name, teacher in teachers.items():
        if teacher is parts.distiller.student:
            record.teachers[name] = {"role": SELF}
        else:
            entry, evaluation = _score_teacher(teacher, parts)
            record.teachers[name] = entry | ({"role": STAGE} if name.startswith(PLACE) else {})
            if evaluation is not None:
                predictions |= _predictions(name, evaluation)
    arrays: dict[str, Any] = {name: values.numpy() for name, values in predictions.items()}
    with atomic_write(folder / PREDICTIONS) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)  # of pixels there are many

    if parts.distiller.task.generates:
        from distillery.runs.fidelity import add_fidelity  # transformers takes seconds: only for texts

        add_fidelity(record, student, teachers, data, parts.distiller.task, parts.distiller.outputs)
    add_class_fidelity(record, predictions, student, teachers, data, parts.distiller.task)
    if ensemble is not None:
        record.metrics["ensemble"] = {"epoch": epoch, **_scores(parts, ensemble)[0]}

    if trained is not parts.distiller.student:
        unaveraged = exported_student(parts.cfg.student, parts.distiller.student)
        record.metrics["unaveraged"] = {"epoch": epoch, **_scores(parts, unaveraged)[0]}

    best = folder / CHECKPOINTS / BEST
    if best.is_file():
        own = deepcopy(trained.net.state_dict())
        checkpoint = torch.load(best, weights_only=True, map_location=trained.device)
        trained.net.load_state_dict(unwrap(checkpoint, own))
        record.metrics["best"] = {"epoch": checkpoint["epoch"] + 1, **_scores(parts, trained)[0]}
        trained.net.load_state_dict(own)


def _predictions(name: str, evaluation: Evaluation) -> dict[str, Tensor]:
    """What `predictions.npz` says of a network."""
    found = {name: evaluation.predicted}
    if evaluation.probabilities is not None:
        found[f"{name}{PROBABILITIES}"] = evaluation.probabilities
    return found


def _score_teacher(teacher: Network, parts: Parts) -> tuple[dict[str, Any], Evaluation | None]:
    """What the record says of a teacher, and how it predicts the data's classes or tokens on the test split."""
    assert isinstance(teacher, Teacher | Peer)
    if isinstance(teacher, Teacher):
        teacher.unfold()  # costs are those of the network as it is
    loaded = isinstance(teacher, Teacher) and teacher.role == FROZEN
    entry = {
        "role": teacher.role,
        "source": teacher.source,
        "sha256": teacher.sha256 if loaded else weights_hash(teacher.net),
        "score": None,
        **(teacher.cost if isinstance(teacher, Teacher) and teacher.cost else cost_of(teacher, parts.data)),
    }
    linear = None
    if isinstance(teacher, Teacher) and teacher.other_classes:
        entry["scored_by"] = f"nothing: it {teacher.other_classes}"
        linear = probe_of(teacher, parts.data, parts.distiller.task)
        if linear is None:
            return entry, None
        entry["scored_by"] = f"{linear.name}, as it {teacher.other_classes}"
    if isinstance(teacher, Teacher):
        evaluation = teacher.evaluation(parts.data, "test", parts.distiller.task, parts.distiller.outputs, linear)
    else:
        evaluation = _evaluate(parts, teacher, parts.data.test_dataloader(), probabilities=True)
    if isinstance(evaluation, str):
        return entry | {"scored_by": f"nothing: {evaluation}"}, None
    entry |= {"score": evaluation.score, **evaluation.metrics, **figures(parts.distiller.task, evaluation)}
    own_tokens = teacher.adapter.own_tokenizer(parts.example) if parts.distiller.task.rows_are == "tokens" else None
    if own_tokens is not None:
        entry["tokenizer"] = own_tokens  # its predictions are of other rows than the student's
    return entry, None if "scored_by" in entry or own_tokens else evaluation


def _scores(parts: Parts, network: Network | Ensemble) -> tuple[dict[str, float | None], Evaluation]:
    """The figures of both splits, and the test split's predictions."""
    test = _evaluate(parts, network, parts.data.test_dataloader(), probabilities=True)
    loader = parts.data.val_dataloader()
    val = _evaluate(parts, network, loader) if loader else None
    of_val = {"score": val.score, "loss": val.loss, **val.metrics} if val else {}
    of_test = {"score": test.score, "loss": test.loss, **test.metrics}
    return {
        **{f"val_{name}": of_val.get(name) for name in of_test},
        **{f"test_{name}": value for name, value in of_test.items()},
        **figures(parts.distiller.task, test),
    }, test


def figures(task: Task, test: Evaluation) -> dict[str, float]:
    """Of a split: perplexity, exact match and calibration of the classes' probabilities, where the task has them."""
    found = {"perplexity": math.exp(test.loss)} if task.perplexity else {}
    if task.exact_match:
        found["exact_match"] = test.exact_match
    if task.prediction == "class" and test.probabilities is not None:
        found |= calibration_figures(test.probabilities, test.target)
    return found


def _evaluate(
    parts: Parts, network: nn.Module, loader: Iterable[Mapping[str, Tensor]], probabilities: bool = False
) -> Evaluation:
    return evaluate(network, loader, parts.distiller.task, parts.distiller.outputs, probabilities)


def cost_of(network: Network, data: Data) -> dict[str, Any]:
    """Of the network itself, on one test sample as it wants it: the adapter and the projectors are not part of it.

    A text is one of the test split's median length.
    """
    forward = network.bound({key: value.to(network.device) for key, value in data.example(1, "test").items()})
    latency = measure_latency(network.net, forward)
    return {
        "params": count_parameters(network.net),
        "embedding_params": count_embedding_parameters(network.net),
        "flops": count_flops(network.net, forward),
        "latency_ms": round(latency.median, 4),
        "latency": {
            "minimum_ms": round(latency.minimum, 4),
            "spread": round(latency.spread, 4),
            "cpu_share": None if latency.cpu_share is None else round(latency.cpu_share, 4),
            "busy": latency.busy,
            "repeats": latency.repeats,
            "threads": 1,
            "batch_size": 1,
            "input": list(next(iter((*forward.args, *forward.keywords.values()))).shape[1:]),
        },
    }
