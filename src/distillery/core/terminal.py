"""Text on the terminal, exactly as it is: rich would take `[v1]` in a path for markup and `:x:` for an emoji."""

from rich.console import Console


def plain_console(stderr: bool = False) -> Console:
    """A console that prints names and paths character by character."""
    return Console(stderr=stderr, markup=False, emoji=False)


def say(text: str, console: Console | None = None) -> None:
    """Print a text without colours and without line breaks of the terminal's width, so that it can be copied."""
    (console or plain_console()).print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)


def show_error(message: str) -> None:
    """Print `error <message>` on stderr."""
    console = plain_console(stderr=True)
    console.print("error", style="bold red", end=" ")
    say(message, console)
