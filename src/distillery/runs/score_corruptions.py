"""Score a run's student on corrupted pictures of its test split."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.progress import track
from rich.table import Table
from torch import Tensor

from distillery.core.errors import UserError, did_you_mean
from distillery.core.files import atomic_write
from distillery.core.terminal import plain_console, say
from distillery.data.corruptions import FAMILIES, KINDS, SEVERITIES, corrupted
from distillery.data.module import Data
from distillery.results.environment import environment
from distillery.results.layout import CORRUPTIONS, CORRUPTIONS_PICTURE
from distillery.results.record import finite
from distillery.results.report.formats import percent
from distillery.results.report.robustness import Robustness, robustness_of
from distillery.runs.score_run import figures
from distillery.runs.verify_run import rebuilt
from distillery.tasks.evaluate import evaluate
from distillery.tasks.task import Batch

ALL = "all"  # `corruptions=all`


def score_corruptions(folder: Path, names: Sequence[str], severities: Sequence[int] = SEVERITIES) -> Robustness:
    """Score the student of a finished run on its test pictures after each corruption, in each severity.

    The record of the run stays as it is: what is found is printed and written to `corruptions.json` in the run folder,
    beside what was found before for the same student. `corruptions.png` shows what becomes of the first picture.

    Args:
        names: of corruptions, or of families of them; `all`.

    Raises:
        UserError: see `verify_run`; an unknown corruption or severity; a run that is not on images.
    """
    chosen = _chosen(names)
    if not severities or not set(severities) <= set(SEVERITIES):
        raise UserError(f"severities={[*severities]}: name some of {', '.join(map(str, SEVERITIES))}.")
    record, student, data, task = rebuilt(folder, "test")
    if data.kind != "images":
        raise UserError(f"The run in {folder} is on {data.kind}, and corruptions are of images.")
    outputs = task.outputs(data)

    def scored(batches: Iterable[Batch]) -> dict[str, Any]:
        found = evaluate(student, batches, task, outputs, probabilities=True)
        return {"score": found.score, "loss": found.loss, **found.metrics, **figures(task, found)}

    clean = scored(data.test_dataloader())
    console = plain_console()
    jobs = [(name, severity) for name in chosen for severity in severities]
    scores = {
        job: scored(_corrupted(data, *job))
        for job in track(jobs, "Corrupting", console=console, transient=True, disable=not console.is_terminal)
    }
    result = {
        "student_sha256": record.student_sha256,
        "score_name": task.score,
        "samples": data.sizes["test"],
        "clean": clean,
        "scores": [
            {"corruption": name, "family": KINDS[name].family, "severity": severity, **figures_}
            for (name, severity), figures_ in (_before(folder, record.student_sha256) | scores).items()
        ],
        "environment": environment() | {"scored_on": student.device.type},
    }
    with atomic_write(folder / CORRUPTIONS) as unfinished:
        unfinished.write_text(json.dumps(finite(result), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    _picture(next(iter(data.test_dataloader())), chosen, severities).savefig(folder / CORRUPTIONS_PICTURE)
    found = robustness_of(folder, record.student_sha256)
    assert found is not None
    say(f"{record.method} seed {record.seed}: {task.score} on {data.sizes['test']:,} test pictures, in percent")
    console.print(_table(found, scores, severities))
    say(", ".join(f"{name} {percent(value)} %" for name, value in found.overall.items()))
    say(f"Written: {folder / CORRUPTIONS}  {folder / CORRUPTIONS_PICTURE}")
    return found


def _chosen(names: Sequence[str]) -> list[str]:
    found: dict[str, None] = {}
    for name in names:
        own = [each for each, kind in KINDS.items() if name in (ALL, each, kind.family)]
        if not own:
            known = [ALL, *FAMILIES, *KINDS]
            raise UserError(f"There is no corruption {name!r}." + did_you_mean(str(name), known))
        found |= dict.fromkeys(own)
    return list(found)


def _corrupted(data: Data, name: str, severity: int) -> Iterator[Mapping[str, Tensor]]:
    for batch in data.test_dataloader():
        yield {**batch, "image": corrupted(batch["image"], batch["index"], name, severity)}


def _before(folder: Path, student_sha256: str | None) -> dict[tuple[str, int], dict[str, Any]]:
    """What is in the file on the same student, by corruption and severity."""
    path = folder / CORRUPTIONS
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if content.get("student_sha256") != student_sha256:
        return {}
    return {(each["corruption"], each["severity"]): each for each in content["scores"]}


def _table(found: Robustness, scores: Mapping[tuple[str, int], Any], severities: Sequence[int]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("family")
    table.add_column("corruption")
    for heading in (*map(str, severities), "mean"):
        table.add_column(heading, justify="right")
    for name in dict.fromkeys(name for name, _ in scores):
        cells = [percent(scores[name, severity]["score"]) for severity in severities]
        table.add_row(KINDS[name].family, name, *cells, percent(found.by_corruption.loc[name, "score"]))
    return table


def _picture(batch: Batch, names: Sequence[str], severities: Sequence[int]) -> Figure:
    """The first picture of a batch after each corruption (rows), in each severity."""
    image, index = batch["image"][:1], batch["index"][:1]
    figure = Figure(figsize=(1 + len(severities), len(names) + 0.3), dpi=100, layout="constrained")
    axes = figure.subplots(len(names), 1 + len(severities), squeeze=False)
    for row, name in zip(axes, names, strict=True):
        for ax, severity in zip(row, (0, *severities), strict=True):
            shown = corrupted(image, index, name, severity)[0] if severity else image[0]
            ax.imshow(shown.movedim(0, -1).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
        row[0].set_ylabel(name.replace("_", "\n"), rotation=0, ha="right", va="center", fontsize=8)
    for ax, heading in zip(axes[0], ("clean", *map(str, severities)), strict=True):
        ax.set_title(heading, fontsize=8)
    return figure
