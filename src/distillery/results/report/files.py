"""What a report consists of."""

from pathlib import Path

REPORT = ("report.md", "report.csv", "report.png")
TIMELINE = "timeline.png"  # only where something changes during a run


def report_files(out: Path) -> list[str]:
    """The names of the files of the report in a folder."""
    return [*REPORT, *([TIMELINE] if (out / TIMELINE).exists() else [])]
