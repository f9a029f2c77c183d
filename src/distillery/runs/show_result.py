"""The last lines that a run prints: what it scored, and the command that verifies it."""

from pathlib import Path

from rich.text import Text

from distillery.config.command_line import pasteable
from distillery.core.terminal import plain_console, say
from distillery.results.record import RunRecord


def show_result(record: RunRecord, folder: Path) -> None:
    """Print the scores, and the command to paste. Nothing is printed of a run that left no scores."""
    last = record.metrics.get("last")
    if not last:
        return
    val = "" if last["val_score"] is None else f", validation {last['val_score']:.4f}"
    more = "".join(f", {each} {last[f'test_{each}']:.4f}" for each in record.data.get("metrics", ()))
    perplexity = f", perplexity {last['perplexity']:.2f}" if "perplexity" in last else ""
    perplexity += f", exact answers {last['exact_match']:.1%}" if "exact_match" in last else ""
    name = "score" if record.data.get("higher_is_better", True) else record.data["score_name"]
    scores = f"test {name} {last['test_score']:.4f}{val}{more}{perplexity}"
    line = Text.assemble((record.method, "bold"), f" seed {record.seed}: {scores}")
    plain_console().print(line, highlight=False, soft_wrap=True)
    if unaveraged := record.metrics.get("unaveraged"):
        say(f"the student without averaging: test {name} {unaveraged['test_score']:.4f}")
    if ensemble := record.metrics.get("ensemble"):
        say(f"ensemble of stages: test score {ensemble['test_score']:.4f}")
    say(pasteable("distill-evaluate", "run", str(folder)))
