"""Downloads through torchvision, with errors that name the alternative."""

from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from distillery.core.errors import UserError


def download(dataset: Callable[..., object], root: Path, wanted: str) -> None:
    """Let torchvision's `dataset` download itself to `root`, one process at a time.

    Raises:
        UserError: the download failed; says where to put the `wanted` files by hand.
    """
    root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root / ".download.lock"):
            dataset(root, download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"There are no data in '{root}', and the download failed: {error}. "
            f"Put {wanted} into a folder and set data.root to it."
        ) from error
