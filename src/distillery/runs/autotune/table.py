"""The table of what was tried, kept and why."""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from distillery.core.kinds import shown
from distillery.core.terminal import plain_console, say


def show(found: Mapping[str, Any]) -> None:
    """Print what was found for the settings that are `auto`, see `RunRecord.autotune`."""
    if found["tried"]:
        plain_console().print(table(found))
    if note := found.get("note"):
        say(note)
    choice = ", ".join(f"{name}={shown(value)}" for name, value in found["choice"].items())
    say(f"Chosen in {found['seconds']:.1f} s: {choice}")


def table(found: Mapping[str, Any]) -> Table:
    """A row for each value that was tried; figures are without and with it."""
    steps = "without end" if found["steps"] is None else f"of {found['steps']:,} steps"
    rounds = f"{found['rounds']} × {found['steps_per_round']} steps without and with each"
    title = f"Settings that are auto ({rounds}), for a run {steps}"
    made = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    made.add_column("setting", no_wrap=True)
    made.add_column("kept")
    timed = any(entry["step_ms"] for entry in found["tried"])
    for heading in ("ms a step", "first step, s", "whole run") if timed else ():
        made.add_column(heading, justify="right", no_wrap=True)
    made.add_column("why", overflow="fold")
    for entry in found["tried"]:
        figures = (
            _change(entry["step_ms"], "{:,.1f}".format),
            _change(entry["first_s"], "{:,.1f}".format),
            _change(entry["run_s"], _duration),
        )
        made.add_row(entry["setting"], "yes" if entry["kept"] else "no", *(figures if timed else ()), entry["why"])
    return made


def _change(both: Sequence[float] | None, text: Callable[[float], str]) -> str:
    return " → ".join(map(text, both)) if both else ""


def _duration(seconds: float) -> str:
    if math.isinf(seconds):
        return "∞"
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
