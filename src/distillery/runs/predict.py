"""What a run's student predicts for pictures and texts that are in no data set."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hydra.utils import instantiate
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
from distillery.models.evaluation_mode import evaluating
from distillery.models.taps.network import Network
from distillery.results.layout import PREDICTIONS
from distillery.runs.verify_run import finished, student_of
from distillery.tasks.task import Task

ALL = "all"  # `top=all`
SUFFIXES = (".csv", ".jsonl", ".npz")


@dataclass(frozen=True)
class Predictions:
    """Of each row: its sample, its target and what the network gives, in the order of the samples."""

    index: Tensor  # [N]
    target: Tensor  # [N]
    logits: Tensor  # [N, C]


def predict_files(folder: Path, given: Sequence[str], out: Path | None = None, top: int | str = 1) -> list[str]:
    """Write what the student of a finished run predicts for these files, folders and patterns.

    Inputs are made as in the evaluation of the run. There is a row for each sample (a picture or a text) or, where
    words have classes, for each word. Depending on the task, it has the likeliest class and its probability; the labels
    with a probability above 0.5, and the probability of each label; the number of a regression; or the values of a
    vector. An `.npz` file has arrays: `probabilities` [N,C] and `classes`, `prediction` [N], or `embedding` [N,D].

    Args:
        out: the file to write; None: CSV on the standard output.
        top: how many classes a row has, the likeliest first; "all": the probability of every class.

    Returns: what was wrong with files and rows that are left out; each is said on the standard error.

    Raises:
        UserError: no finished run, a task that predicts tokens, a file of another type, or no sample that can be read.
    """
    if out is not None and out.suffix not in SUFFIXES:
        raise UserError(f"out={out}: the file must end in {', '.join(SUFFIXES)}.")
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
    if task.rows_are not in ("samples", "tokens"):
        raise UserError(
            f"The run in {folder} predicts {task.rows_are}, but distill-predict writes a row for each sample. "
            f"{PREDICTIONS} in the run folder has the predictions of the test split."
        )
    if not given:
        raise UserError("Which files? distill-predict run=<run folder> <files, folders or patterns>")
    classes = record.data["classes"]
    data, unseen = build_unseen(cfg, task, classes, given)
    console = plain_console(stderr=True)
    if not len(unseen.inputs):
        raise UserError("There is nothing to predict. " + " ".join(unseen.problems))
    found = _predictions(student_of(folder, cfg, record), data, task)
    for remark in data.remarks:
        say(remark, console)
    columns = _of_rows(unseen.columns, unseen.inputs, found)
    if out is not None and out.suffix == ".npz":
        arrays: dict[str, Any] = columns | _arrays(task, found.logits, classes)
        with atomic_write(out) as unfinished, unfinished.open("wb") as file:
            np.savez(file, **arrays)
    else:
        table = pd.DataFrame(columns | _named(task, found.logits, classes, top))
        if out is None:
            table.to_csv(sys.stdout, index=False, float_format="%.6g")
        else:
            with atomic_write(out) as unfinished:
                if out.suffix == ".csv":
                    table.to_csv(unfinished, index=False, float_format="%.6g")
                else:
                    table.to_json(unfinished, orient="records", lines=True, force_ascii=False)
    for problem in unseen.problems:
        say(f"left out: {problem}", console)
    if out is not None:
        say(f"Written: {out}, {len(found.index):,} rows", console)
    return unseen.problems


def _predictions(student: Network, data: Data, task: Task) -> Predictions:
    loader = data.test_dataloader()
    console = plain_console(stderr=True)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    with evaluating(student):
        for batch in track(loader, "Predicting", console=console, transient=True, disable=not console.is_terminal):
            batch = {key: value.to(student.device) for key, value in batch.items()}
            rows, of_rows = task.rows(student(batch), batch)
            parts.append((of_rows["index"].cpu(), of_rows["target"].cpu(), at_least_float32(rows.logits).cpu()))
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
