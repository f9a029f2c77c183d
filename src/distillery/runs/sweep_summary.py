"""The report at a sweep's end. Imports nothing heavy before: Hydra makes the callback for every command."""

import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from distillery.config.sweep_words import SWEPT, swept_settings
from distillery.runs.sweep_journal import JOURNAL, Outcome, noted


class SweepSummary(Callback):
    """Reports at a sweep's end: the table of its settings, and how many jobs were kept, run and failed.

    Listed under `hydra.callbacks`.

    Raises:
        SystemExit: 1 at the end, if a job failed, or all are over their budget.
    """

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        journal = Path(config.hydra.sweep.dir).resolve() / ".jobs"
        if journal.is_file():  # of a sweep that was stopped
            journal.unlink()
        os.environ[JOURNAL] = str(journal)
        os.environ[SWEPT] = json.dumps(swept_settings(config))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        notes = noted()
        journal = Path(os.environ.pop(JOURNAL))
        del os.environ[SWEPT]
        if not notes:  # the plans were shown
            return
        journal.unlink()
        _report(notes, config)
        folders = {o: [each["folder"] for each in notes if each["outcome"] == o] for o in get_args(Outcome)}
        budget = any(each["target"] for each in notes)
        counts = ", ".join(f"{len(those)} {o}" for o, those in folders.items() if budget or o != "over budget")
        print(f"{counts}: {config.hydra.sweep.dir}", *(f"failed: {where}" for where in folders["failed"]), sep="\n")
        if folders["failed"] or len(folders["over budget"]) == len(notes):
            sys.exit(1)


def _report(notes: Sequence[Mapping[str, Any]], config: DictConfig) -> None:
    """The report on these runs and the others in the sweep's folder. An error is printed: the sweep itself is done."""
    from omegaconf import OmegaConf

    from distillery.config.explain import user_message
    from distillery.core.terminal import plain_console, say
    from distillery.results.layout import CONFIG
    from distillery.results.record import RunRecord
    from distillery.results.report.score import Score
    from distillery.results.report.terminal import search_table
    from distillery.runs.loggers import log_report
    from distillery.runs.show_report import show_report
    from distillery.runs.trials import search_of, trials_of
    from distillery.runs.winner import winner

    out, runs = Path(config.hydra.sweep.dir), [Path(each["folder"]) for each in notes]
    elsewhere = [run for run in runs if not run.is_relative_to(out.resolve())]
    title = f"Sweep of {config.name}"
    try:
        known = [Path(each["folder"]) for each in notes if each["outcome"] != "failed"]
        trained = [Path(each["folder"]) for each in notes if each["outcome"] in ("kept", "run")]
        budget = any(each["target"] for each in notes)
        found = None
        if known and (budget or "optuna" in config.hydra.sweeper._target_):
            trials, score = trials_of(notes), Score.of_monitored(RunRecord.read(known[0]))
            search = search_of(trials, score, config)
            search.write(out)
            found = winner(trials, search, score) if budget else None
            if not trained:
                plain_console().print(search_table(search, score, title), *([found] if found else []))
                return
        folders = [*([out] if len(elsewhere) < len(runs) else []), *elsewhere]
        table = show_report(folders, out, title, found)
        if trained:
            log_report(DictConfig(OmegaConf.load(trained[0] / CONFIG)), table, out)
    except Exception as error:  # of which Hydra would make a warning
        say(f"No report: {user_message(error, 'report') or ''.join(traceback.format_exception(error))}")
