"""What became of a sweep's jobs: each notes it, in whichever process a launcher runs it, in one file of the sweep.

Imports nothing heavy: Hydra makes the callback that reads it for every command.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from hydra.core.hydra_config import HydraConfig

from distillery.config.sweep_words import swept_values

Outcome = Literal["kept", "run", "failed", "over budget"]
JOURNAL = "DISTILLERY_JOURNAL"  # names the file of the notes: a job's own `hydra.sweep.dir` may differ (`name=a,b`)


def note(
    outcome: Outcome,
    folder: Path,
    seed: int,
    score: float | None = None,
    target: Mapping[str, Any] | None = None,
) -> None:
    """Note what became of the job, or of one seed of it, in this run folder; its validation score and its budget."""
    job = {"job": HydraConfig.get().job.num, "swept": swept_values(), "seed": seed}
    with Path(os.environ[JOURNAL]).open("a", encoding="utf-8") as file:
        line = {"outcome": outcome, "folder": str(folder), "score": score, "target": target, **job}
        file.write(json.dumps(line) + "\n")


def noted() -> list[dict[str, Any]]:
    """The notes of the jobs of this sweep so far."""
    journal = Path(os.environ[JOURNAL])
    return [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()] if journal.exists() else []


def sweep_folder() -> Path:
    """The folder of this sweep."""
    return Path(os.environ[JOURNAL]).parent
