"""The last lines that a run prints: what it scored, and the command that verifies it."""

from pathlib import Path

from rich.text import Text

from distillery.config.command_line import pasteable
from distillery.core.terminal import plain_console
from distillery.results.record import RunRecord


def show_result(record: RunRecord, folder: Path) -> None:
    """Print one line to read and one to paste."""
    last = record.metrics.get("last")
    if not last:
        return
    val = "" if last["val_score"] is None else f", validation {last['val_score']:.4f}"
    perplexity = f", perplexity {last['perplexity']:.2f}" if "perplexity" in last else ""
    lines = [
        Text.assemble(
            (record.method, "bold"), f" seed {record.seed}: test score {last['test_score']:.4f}{val}{perplexity}"
        )
    ]
    if ensemble := record.metrics.get("ensemble"):
        lines.append(Text(f"ensemble of stages: test score {ensemble['test_score']:.4f}"))
    lines.append(Text(pasteable("distill-evaluate", "run", str(folder))))
    for line in lines:
        plain_console().print(line, highlight=False, soft_wrap=True)
