"""The table of what was tried and kept, and why."""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from distillery.core.kinds import shown
from distillery.core.process import is_main
from distillery.core.terminal import plain_console, say, telling


def show(found: Mapping[str, Any]) -> None:
    """Print what was found for the settings that are `auto`, see `RunRecord.autotune`."""
    tried = found["tried"]
    if tried:
        steps = "without end" if found["steps"] is None else f"of {found['steps']:,} steps"
        rounds = f"{found['rounds']} × {found['steps_per_round']} steps without and with each"
        say(f"Settings that are auto ({rounds}), for a run {steps}")
    if timed := [entry for entry in tried if entry["step_ms"]]:
        plain_console().print(table(timed))
    for entry in tried:  # below the table: beside its figures a terminal of 80 columns has no room for reasons
        verdict = (", kept" if entry["kept"] else ", not kept") if entry["step_ms"] else ""
        say(f"{entry['setting']}{verdict}: {entry['why']}")
    if note := found.get("note"):
        say(note)
    say(f"Chosen in {found['seconds']:.1f} s: {_choice(found)}")


def show_taken(found: Mapping[str, Any], by: str) -> None:
    """Print what an earlier job, or this one before it was stopped, has found, and `by` whom."""
    if telling() and is_main():
        say(f"Settings that are auto, as chosen by {by}: {_choice(found)}")


def table(timed: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each value that was timed; figures are without and with it."""
    made = Table(box=SIMPLE_HEAD)
    made.add_column("setting", overflow="fold")
    for heading in ("ms a step", "first step, s", "whole run"):
        made.add_column(heading, justify="right")
    for entry in timed:
        figures = (
            _change(entry["step_ms"], "{:,.1f}".format),
            _change(entry["first_s"], "{:,.1f}".format),
            _change(entry["run_s"], _duration),
        )
        made.add_row(entry["setting"], *figures)
    return made


def _choice(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={shown(value)}" for name, value in found["choice"].items())


def _change(both: Sequence[float], text: Callable[[float], str]) -> str:
    return " → ".join(map(text, both))


def _duration(seconds: float) -> str:
    if math.isinf(seconds):
        return "∞"
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
