"""What a run's student predicts for pictures, texts and questions that are in no data set."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from distillery.config.networks import run_config
from distillery.config.unseen_data import build_unseen
from distillery.core.errors import UserError
from distillery.core.files import atomic_write
from distillery.core.kinds import shown
from distillery.core.numerics import at_least_float32
from distillery.core.terminal import plain_console, say
from distillery.data.module import Data
from distillery.data.raw_data import Texts
from distillery.data.unseen import Unseen
from distillery.models.evaluation_mode import evaluating
from distillery.models.taps.network import Network
from distillery.runs.predicted_masks import write_masks
from distillery.runs.verify_run import finished, student_of
from distillery.tasks.answers import answers, likeliest_spans
from distillery.tasks.question_answering import Answerable
from distillery.tasks.task import Task

ALL = "all"  # `top=all`
NPZ = ".npz"
SUFFIXES = (".csv", ".jsonl", NPZ)


@dataclass(frozen=True)
class Predictions:
    """Of each row: its sample, its target and what the network gives, in the order of the samples."""

    index: Tensor  # [N]
    target: Tensor  # [N]
    logits: Tensor  # [N, C]


def predict_files(folder: Path, given: Sequence[str], out: Path | None = None, top: int | str = 1) -> list[str]:
    """Write what the student of a finished run predicts for these files, folders and patterns.

    Inputs are made as in the evaluation of the run. There is a row for each sample (a picture, a text, a question) or,
    where words have classes, for each word. Depending on the task, it has the likeliest class and its probability; the
    labels with a probability above 0.5, and the probability of each label; the number of a regression; the values of a
    vector; or an answer, see `tasks/answers.py`. An `.npz` file has arrays: `probabilities` [N,C] and `classes`,
    `prediction` [N], `embedding` [N,D], or `answer` [N]. Where pixels have classes, there is a picture for each, see
    `write_masks`.

    Args:
        out: the file to write, or the folder of the masks; None: CSV on the standard output.
        top: how many classes a row has, the likeliest first; "all": the probability of every class.

    Returns: what was wrong with files and rows that are left out; each is said on the standard error.

    Raises:
        UserError: no finished run, a task that predicts tokens, a file of another type, or no sample that can be read.
    """
    if top != ALL and (not isinstance(top, int) or top < 1):
        raise UserError(f"top={shown(top)}: it must be a whole number of at least 1, or all.")
    record, cfg = finished(folder), run_config(str(folder), "run")
    task = instantiate(cfg.task)
    if task.prediction == "token":
        raise UserError(
            f"The run in {folder} predicts tokens of texts, not classes. "
            + (
                "distill-generate model/teacher=run teachers.main.weights=<run> continues texts."
                if task.generates
                else "distill-export writes it for the fill-mask pipeline of transformers."
            )
        )
    of_pixels = task.rows_are == "pixels"
    if of_pixels and (out is None or out.suffix in SUFFIXES):
        raise UserError(f"The run in {folder} predicts a mask for each picture: out=<folder> to write them into.")
    if not of_pixels and out is not None and out.suffix not in SUFFIXES:
        raise UserError(f"out={out}: the file must end in {', '.join(SUFFIXES)}.")
    if not given:
        raise UserError("Which files? distill-predict run=<run folder> <files, folders or patterns>")
    classes = record.data["classes"]
    data, unseen = build_unseen(cfg, task, classes, given)
    console = plain_console(stderr=True)
    if not len(unseen.inputs):
        raise UserError("There is nothing to predict. " + " ".join(unseen.problems))
    student = student_of(folder, cfg, record)
    if of_pixels:
        assert out is not None
        write_masks(out, unseen, _masks(student, data, task))
        numbers = ", ".join(f"{number} {name}" for number, name in enumerate(classes))
        written = f"{len(unseen.inputs):,} masks of the classes {numbers}"
    else:
        arrays = out is not None and out.suffix == NPZ
        rows = _rows(student, data, task, unseen, classes, top, arrays)
        _write(out, rows)
        written = f"{len(rows['path']):,} rows"
    for remark in data.remarks:
        say(remark, console)
    for problem in unseen.problems:
        say(f"left out: {problem}", console)
    if out is not None:
        say(f"Written: {out}, {written}", console)
    return unseen.problems


def _rows(
    student: Network, data: Data, task: Task, unseen: Unseen, classes: Sequence[str], top: int | str, arrays: bool
) -> dict[str, Any]:
    """The columns of the table, or the arrays of the file."""
    if task.rows_are == "spans":
        return {**unseen.columns, **_answers(student, data, task)}
    found = _predictions(student, data, task)
    predicted = _arrays(task, found.logits, classes) if arrays else _named(task, found.logits, classes, top)
    return {**_of_rows(unseen.columns, unseen.inputs, found), **predicted}


def _write(out: Path | None, rows: Mapping[str, Any]) -> None:
    if out is not None and out.suffix == NPZ:
        with atomic_write(out) as unfinished, unfinished.open("wb") as file:
            np.savez(file, **rows)
        return
    table = pd.DataFrame(rows)
    if out is None:
        table.to_csv(sys.stdout, index=False, float_format="%.6g")
        return
    with atomic_write(out) as unfinished:
        if out.suffix == ".csv":
            table.to_csv(unfinished, index=False, float_format="%.6g")
        else:
            table.to_json(unfinished, orient="records", lines=True, force_ascii=False)


def _outputs(student: Network, data: Data, task: Task) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
    """Of each batch the logits of its rows, and what else there is of them, on the CPU."""
    loader = data.test_dataloader()
    console = plain_console(stderr=True)
    with evaluating(student):
        for batch in track(loader, "Predicting", console=console, transient=True, disable=not console.is_terminal):
            batch = {key: value.to(student.device) for key, value in batch.items()}
            if task.rows_are == "pixels":  # all of them count
                height, width = batch["image"].shape[2:]
                batch["target"] = batch["target"][:, None, None].expand(-1, height, width)
            rows, of_rows = task.rows(student(batch), batch)
            yield at_least_float32(rows.logits).cpu(), {key: value.cpu() for key, value in of_rows.items()}


def _masks(student: Network, data: Data, task: Task) -> Iterator[NDArray[np.uint8]]:
    """The classes of the pixels of each picture, [H,W]."""
    for logits, of_rows in _outputs(student, data, task):
        height, width = of_rows["image"].shape[2:]
        yield from task.predict(logits).view(-1, height, width).numpy()


def _answers(student: Network, data: Data, task: Task) -> dict[str, list[Any]]:
    """The answer to each question, as columns."""
    assert isinstance(data, Answerable)
    windows = [
        likeliest_spans(logits, of_rows["question"], of_rows["begin"], of_rows["end"])
        for logits, of_rows in _outputs(student, data, task)
    ]
    found = [*answers(torch.cat(windows), data.questions)]
    return {
        "answer": [answer.text for answer in found],
        "probability": [answer.probability for answer in found],
        "p(no answer)": [answer.probability_of_none for answer in found],
    }


def _predictions(student: Network, data: Data, task: Task) -> Predictions:
    parts = [(of_rows["index"], of_rows["target"], logits) for logits, of_rows in _outputs(student, data, task)]
    index, target, logits = (torch.cat(each) for each in zip(*parts, strict=True))
    order = torch.argsort(index, stable=True)  # texts are served by their length, words in their order
    return Predictions(index[order], target[order], logits[order])


def _of_rows(columns: Mapping[str, list[Any]], inputs: Any, found: Predictions) -> dict[str, list[Any]]:
    """What tells the rows apart."""
    samples = found.index.tolist()
    of_rows = {name: [values[sample] for sample in samples] for name, values in columns.items()}
    if isinstance(inputs, Texts) and inputs.labels is not None:
        places = found.target.tolist()
        words = [inputs.first[sample][place] for sample, place in zip(samples, places, strict=True)]
        of_rows |= {"place": [place + 1 for place in places], "word": words}
    return of_rows


def _named(task: Task, logits: Tensor, classes: Sequence[str], top: int | str) -> dict[str, Any]:
    """The predictions as columns of a table."""
    if task.prediction == "number":
        return {"prediction": task.predict(logits).numpy()}
    if task.prediction == "vector":
        return {f"v{number}": column for number, column in enumerate(task.predict(logits).T.numpy())}
    probabilities = task.probabilities(logits)
    assert probabilities is not None
    of_classes = {f"p({name})": column for name, column in zip(classes, probabilities.T.numpy(), strict=True)}
    found: dict[str, Any] = {}
    if task.prediction == "labels":
        of_rows = [[classes[number] for number in row.nonzero().flatten().tolist()] for row in task.predict(logits)]
        return {"prediction": ["|".join(names) for names in of_rows], **of_classes}
    best, index = probabilities.topk(1 if top == ALL else min(int(top), len(classes)))
    for rank in range(best.shape[1]):
        ending = f"_{rank + 1}" if rank else ""
        found[f"prediction{ending}"] = [classes[number] for number in index[:, rank].tolist()]
        found[f"probability{ending}"] = best[:, rank].numpy()
    return found | (of_classes if top == ALL else {})


def _arrays(task: Task, logits: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """The predictions as arrays."""
    predicted = task.predict(logits).numpy()
    if task.prediction == "vector":
        return {"embedding": predicted}
    if task.prediction == "number":
        return {"prediction": predicted}
    probabilities = task.probabilities(logits)
    assert probabilities is not None
    return {"prediction": predicted, "probabilities": probabilities.numpy(), "classes": np.array(classes)}
