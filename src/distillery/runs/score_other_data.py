"""Score a run's student on other data than the run's."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from torch import Tensor

from distillery.config.networks import run_config
from distillery.config.other_data import build_other_data
from distillery.core.errors import UserError, did_you_mean
from distillery.core.files import atomic_write
from distillery.core.terminal import say
from distillery.data.module import Data
from distillery.results.environment import environment
from distillery.results.layout import EVALUATIONS
from distillery.runs.score_run import figures
from distillery.runs.verify_run import SPLITS, finished, student_of
from distillery.tasks.evaluate import Evaluation, evaluate

ALL = "all"  # the labelled samples of all splits


def score_other_data(folder: Path, changed: Mapping[str, Any], split: str = "test") -> Evaluation:
    """Score the student of a finished run on a split of the data that its config describes with `changed` settings.

    The record of the run stays as it is: the score is printed and written to
    `evaluations/<data>_<split>_<fingerprint>.json` in the run folder. Classes are matched by name; the data may lack
    some of the run's.

    Raises:
        UserError: no finished run, no such split, or what `build_other_data` refuses.
    """
    if split not in (*SPLITS, ALL):
        raise UserError(f"There is no split {split!r}." + did_you_mean(split, (*SPLITS, ALL)))
    record, cfg = finished(folder), run_config(str(folder), "run")
    student, task = student_of(folder, cfg, record), instantiate(cfg.task)
    data = build_other_data(cfg, changed, record.data["classes"], student, task, held_out=split == "val")
    if split == "val" and not data.sizes["val"]:
        raise UserError(f"'{data.name}' has no validation samples.")
    found = evaluate(student, _batches(data, split), task, task.outputs(data), probabilities=True)
    samples = len(found.index.unique())
    classes = data.classes if task.is_of_classes() else ()
    held = found.target.nonzero()[:, 1] if task.prediction == "labels" else found.target
    absent = [name for number, name in enumerate(classes) if number not in held]
    result = {
        "data": data.name,
        "settings": dict(changed),
        "split": split,
        "fingerprint": data.fingerprint,
        "samples": samples,
        "absent_classes": absent,
        "remarks": list(data.remarks),
        "student_sha256": record.student_sha256,
        "score_name": task.score,
        "score": found.score,
        "loss": found.loss,
        **found.metrics,
        **figures(task, found),
        "environment": environment() | {"scored_on": student.device.type},
    }
    out = folder / EVALUATIONS / f"{data.name}_{split}_{data.fingerprint[:8]}.json"
    with atomic_write(out) as unfinished:
        unfinished.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for remark in data.remarks:
        say(f"{data.name}: {remark}")
    if absent:
        say(f"{data.name}: no sample of {', '.join(absent)}, of the run's {len(data.classes)} classes")
    more = "".join(f", {name} {value:.4f}" for name, value in found.metrics.items())
    every = sum(len(each.labelled_indices) for each in data.splits.values())
    part = f"{samples:,} of {every:,} samples of {data.name} ({split}); split=all scores them all"
    scored = part if samples < every else f"all {samples:,} samples of {data.name}"
    say(f"{record.method} seed {record.seed}: {task.score} {found.score:.4f}{more} on {scored}")
    say(f"recorded on the run's own data: {record.metrics['last']['test_score']:.4f} (test)")
    say(f"Written: {out}")
    return found


def _batches(data: Data, split: str) -> Iterator[Mapping[str, Tensor]]:
    """The batches of a split, or of all; then no two samples have the same `index`."""
    if split != ALL:
        yield from data.test_dataloader() if split == "test" else data.val_dataloader()
        return
    keys, dataset = data.plain(data.eval_batch_size, augmented=False)
    before = 0
    for part, batches in (
        ("train", map(dataset.__getitem__, keys)),
        ("val", data.val_dataloader()),
        ("test", data.test_dataloader()),
    ):
        for batch in batches:
            yield {**batch, "index": batch["index"] + before}
        before += len(data.splits[part].targets)
