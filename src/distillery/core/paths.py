"""Where the project's own files lie."""

import os
from contextlib import suppress
from pathlib import Path

PACKAGE = Path(__file__).parents[1]

# A wheel carries the configs inside the package; a clone, and an editable install of it, has them at its top.
CONFIGS = next(folder for folder in (PACKAGE / "configs", PACKAGE.parents[1] / "configs") if folder.is_dir())


def cache_folder() -> Path:
    """Where what was computed from the user's files is kept: `DISTILLERY_CACHE`, or as other programs do it."""
    own = os.environ.get("DISTILLERY_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "distillery"


def scratch_folder() -> Path | None:
    """Where files may lie as long as a process runs: the cache folder, or, if it cannot be written, the system's.

    The system's may be in memory.
    """
    with suppress(OSError):
        cache_folder().mkdir(parents=True, exist_ok=True)
        if os.access(cache_folder(), os.W_OK):
            return cache_folder()
    return None
