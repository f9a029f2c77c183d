"""What is printed of the settings that were timed, on a terminal of 80 columns."""

import pytest

from distillery.runs.autotune.rule import Timing, Tried
from distillery.runs.autotune.table import show


def test_reasons_are_whole_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    without, with_it = Timing(0.5, [0.2] * 5), Timing(0.4, [0.1] * 5)
    timed = Tried.timed("channels_last=true", without, with_it, 90_000)
    stopped = Tried("compile=true", False, "stopped: it took too long, 16.1 s are left of 5% of the run")
    figures = {"steps": 90_000, "rounds": 5, "steps_per_round": 1, "seconds": 2.0}
    show({"choice": {"channels_last": True}, "tried": [vars(timed), vars(stopped)], **figures})
    printed = capsys.readouterr().out.splitlines()
    row = next(line for line in printed if line.startswith("  channels_last=true"))
    assert "200.0 → 100.0" in row
    assert "5:00:00 → 2:30:00" in row
    assert "channels_last=true, kept: a step takes 50% less time" in printed
    assert "compile=true: stopped: it took too long, 16.1 s are left of 5% of the run" in printed
