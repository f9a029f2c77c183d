"""Tables of figures."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table

from distillery.core.terminal import plain_console


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table in Markdown, which reads well on a terminal and on the page of benchmarks alike."""
    table = Table(box=box.MARKDOWN)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = plain_console()
    console.width = 200
    with console.capture() as shown:
        console.print(table)
    print(f"\n{title}\n\n{shown.get().strip()}\n", flush=True)
