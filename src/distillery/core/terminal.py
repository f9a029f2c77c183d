"""Text on the terminal, exactly as it is: rich would take `[v1]` in a path for markup and `:x:` for an emoji."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console

_telling = ContextVar("telling", default=True)


def telling() -> bool:
    """Whether a run tells what it is made of and how it starts: plan, teachers' scores, scale of the losses."""
    return _telling.get()


@contextmanager
def hushed() -> Iterator[None]:
    """Within: runs tell nothing of that, as a study has many of them. Warnings are shown."""
    before = _telling.set(False)
    try:
        yield
    finally:
        _telling.reset(before)


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
