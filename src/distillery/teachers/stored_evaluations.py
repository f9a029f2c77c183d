"""A teacher's scores and predictions on the validation and test splits, in files beside its signals."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save

from distillery.core.files import atomic_write, sha256_of
from distillery.data.module import Data, Stage
from distillery.tasks.evaluate import Evaluation
from distillery.tasks.task import Task
from distillery.teachers.disk_cache import DiskCache
from distillery.teachers.frozen import Teacher

BESIDE_SCORE = ("metrics", "monitor", "classes")  # of a task: it scores the same with and without


def write_evaluations(
    folder: Path, teacher: Teacher, data: Data, task: Task, outputs: int | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Score a teacher where runs ask for it. Returns what the manifest says of it, and the hashes of the files."""
    found: dict[str, Any] = {}
    files: dict[str, str] = {}
    data.setup("test")
    stages: list[Stage] = ["val" if data.sizes["val"] else "train", "test"]
    for stage in stages if not teacher.other_classes else ():
        scored = teacher.evaluation(data, stage, task, outputs)
        if isinstance(scored, str):
            continue
        tensors = {"index": scored.index, "target": scored.target, "predicted": scored.predicted}
        tensors |= {} if scored.probabilities is None else {"probabilities": scored.probabilities}
        path = folder / _file(stage)
        with atomic_write(path) as unfinished:
            unfinished.write_bytes(save({name: each.contiguous() for name, each in tensors.items()}))
        found[stage] = {
            "score": scored.score,
            "loss": scored.loss,
            "metrics": scored.metrics,
            "data": data.split_sha256(stage),
            "task": _described(task),
        }
        files[path.name] = sha256_of(path)
    return found, files


def stored_evaluation(cache: DiskCache, data: Data, stage: Stage, task: Task) -> Evaluation | str:
    """The evaluation on a split, or why there is none."""
    known = cache.contents.evaluations.get(stage)
    if known is None:
        return f"{cache.folder} has no score for the {stage} split"
    if (known["data"], known["task"]) != (data.split_sha256(stage), _described(task)):
        return f"{cache.folder} has a {stage} score for other data or other settings of the task"
    stored = load_file(cache.folder / _file(stage))
    metrics = {name: known["metrics"][name] for name in task.metrics if name in known.get("metrics", ())}
    return Evaluation(known["score"], known["loss"], **stored, metrics=metrics)


def _file(stage: str) -> str:
    return f"evaluation_{stage}.safetensors"


def _described(task: Task) -> str:
    """What a teacher's score depends on besides the data."""
    settings = {name: value for name, value in vars(task).items() if name not in BESIDE_SCORE}
    return f"{type(task).__name__} {settings | {'weight': None, 'rows_per_chunk': None}}"
