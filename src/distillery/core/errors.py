"""What the user is told when a configuration or an input cannot work."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can mend; the message says what, where, and how. Shown without a traceback."""


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """A sentence naming the options nearest to `name`, or all of them where none is near."""
    known = sorted(set(options))
    if near := difflib.get_close_matches(name, known, n=3, cutoff=0.5):
        return " Did you mean " + " or ".join(repr(match) for match in near) + "?"
    if not known:
        return " There are none."
    shown = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
    return f" Choose from: {shown}."
