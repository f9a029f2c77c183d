"""Downloading through torchvision, with errors that say what else can be done."""

from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from distillery.core.errors import UserError


def download(dataset: Callable[..., object], root: Path, wanted: str) -> None:
    """Let torchvision's `dataset` download itself to `root`; one process at a time.

    Raises:
        UserError: it failed; says where the `wanted` files may be put by hand.
    """
    root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root / ".download.lock"):
            dataset(root, download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"The data are not under '{root}' and the download failed: {error}. "
            f"Put {wanted} into a folder and name it with data.root=<folder>."
        ) from error
