"""Score a run's student on the tasks of EleutherAI's lm-evaluation-harness."""

import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from distillery.core.errors import UserError
from distillery.core.files import atomic_write
from distillery.core.terminal import plain_console, say
from distillery.results.layout import LM_EVAL
from distillery.runs.export.transformers_folder import export_for_transformers as export

BATCH = 8


def harness_scores(folder: Path, tasks: Sequence[str], limit: int | None = None) -> list[dict[str, Any]]:
    """The exported student's scores, each a dict of `task`, `shots`, `samples`, `metric`, `value` and `stderr`.

    They are printed and written to `lm_eval.json` in the run folder. The names of the metrics are the harness's: `acc`
    takes the answer of the greatest probability, `acc_norm` divides its logarithm by the answer's number of characters.

    Args:
        tasks: names, or YAML files of tasks.
        limit: samples of each task; None: all.

    Raises:
        UserError: see `export`; lm_eval is not installed, or has no such task or not its data.
    """
    try:
        import lm_eval
    except ModuleNotFoundError as error:
        raise UserError(f"lm_eval needs a package that is not installed: pip install -e '.[eval]' ({error})") from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with TemporaryDirectory(prefix="distillery-") as place:
        exported = export(folder, Path(place) / "student")
        try:
            found = lm_eval.simple_evaluate(
                "hf",
                model_args={"pretrained": str(exported)},
                tasks=[str(task) for task in tasks],
                limit=limit,
                batch_size=BATCH,
                device="cuda" if torch.cuda.is_available() else "cpu",
                log_samples=False,
            )
        except (ValueError, KeyError, OSError) as error:
            raise UserError(
                f"lm_eval={list(tasks)}: {error}\nA task is a name of the harness (`lm-eval ls tasks`) or a YAML file; "
                "its data must be on this machine, or the hub within reach."
            ) from error
    scores = list(_scores(found))
    with atomic_write(folder / LM_EVAL) as unfinished:
        unfinished.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    table = Table(title=f"lm-evaluation-harness {lm_eval.__version__}", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("task", "metric"):
        table.add_column(heading, overflow="fold")
    for heading in ("value", "± stderr", "shots", "samples"):
        table.add_column(heading, justify="right")
    for score in scores:
        half = "" if score["stderr"] is None else f"{score['stderr']:.4f}"
        row = f"{score['value']:.4f}", half, str(score["shots"]), str(score["samples"])
        table.add_row(score["task"], score["metric"], *row)
    plain_console().print(table)
    say(f"Written: {folder / LM_EVAL}")
    return scores


def _scores(found: Any) -> Iterator[dict[str, Any]]:
    """A row for each metric of each task. The harness keeps them as `acc,none` (metric and filter)."""
    for task, values in found["results"].items():
        for key, value in values.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            stderr = values.get(f"{metric}_stderr,{filtered}")
            known = isinstance(stderr, float) and math.isfinite(stderr)
            yield {
                "task": task,
                "shots": found["n-shot"].get(task),
                "samples": found["n-samples"].get(task, {}).get("effective"),
                "metric": metric if filtered == "none" else f"{metric} ({filtered})",
                "value": value,
                "stderr": stderr if known else None,
            }
