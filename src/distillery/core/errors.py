"""Errors that the user can fix, and suggestions for misspelt names."""

import difflib
import re
from collections.abc import Callable, Iterable
from pathlib import Path

SETTING = re.compile(r"[a-z_]\w*(\.\w+)*=")


class UserError(Exception):
    """A mistake that the user can fix. The message says what is wrong, where, and how; no traceback is shown."""


def named(path: str, error: UserError) -> UserError:
    """The error with the path of the setting that its message begins with (`temperature=0: …`), or else of the node."""
    message = str(error)
    return UserError(f"{path}{'.' if SETTING.match(message) else ': '}{message}")


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """A sentence naming the options nearest to `name`, or all of them if none is near."""
    known = sorted(set(options))
    if near := difflib.get_close_matches(name, known, n=3, cutoff=0.5):
        return " Did you mean " + " or ".join(repr(match) for match in near) + "?"
    if not known:
        return " There are none."
    shown = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
    return f" Choose from: {shown}."


def did_you_mean_beside(path: Path, wanted: Callable[[Path], bool]) -> str:
    """`did_you_mean` among the files or folders that lie where `path` does not; empty if none of them is `wanted`."""
    beside = [each.name for each in path.parent.iterdir() if wanted(each)] if path.parent.is_dir() else []
    return did_you_mean(path.name, beside) if beside else ""
