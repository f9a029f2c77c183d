"""What became of a sweep's jobs: each notes it in whichever process a launcher runs it; the sweep prints it at its end.

Imports nothing heavy: Hydra makes the callback for every command.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, Literal, get_args

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

Outcome = Literal["kept", "run", "failed"]
JOURNAL = "DISTILLERY_JOURNAL"  # names the file of the notes: a job's own `hydra.sweep.dir` may differ (`name=a,b`)


def note(outcome: Outcome, folder: Path) -> None:
    """Note what became of the job in this run folder."""
    with Path(os.environ[JOURNAL]).open("a", encoding="utf-8") as file:
        file.write(json.dumps([outcome, str(folder)]) + "\n")


class SweepSummary(Callback):
    """Prints at a sweep's end how many jobs were kept, run and failed, and where. Listed under `hydra.callbacks`.

    Raises:
        SystemExit: 1 at the end, if a job failed.
    """

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        journal = Path(config.hydra.sweep.dir).resolve() / ".jobs"
        if journal.is_file():  # of a sweep that was stopped
            journal.unlink()
        os.environ[JOURNAL] = str(journal)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        journal = Path(os.environ.pop(JOURNAL))
        if not journal.exists():  # the plans were shown
            return
        notes = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
        journal.unlink()
        folders = {outcome: [where for each, where in notes if each == outcome] for outcome in get_args(Outcome)}
        counts = ", ".join(f"{len(those)} {outcome}" for outcome, those in folders.items())
        print(f"{counts}: {config.hydra.sweep.dir}", *(f"failed: {where}" for where in folders["failed"]), sep="\n")
        if folders["failed"]:
            sys.exit(1)
