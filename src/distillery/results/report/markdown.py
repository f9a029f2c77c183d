"""The pieces of Markdown that a report is made of."""

from collections.abc import Iterable, Sequence


def table_of(header: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A table whose first column, or first `texts` columns, are text and whose others are figures."""
    lines = [header, ["---"] * texts + ["---:"] * (len(header) - texts), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def section(heading: str, *parts: str) -> str:
    """The parts that are not empty, a blank line between them, below the heading; empty where all are."""
    shown = [part.strip() for part in parts if part.strip()]
    return "\n\n".join([f"## {heading}", *shown]) if shown else ""


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def listed(values: Iterable[object]) -> str:
    """Each different value once, with commas between them."""
    return ", ".join(dict.fromkeys(str(value) for value in values))
