"""Where the project's own files lie."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]

# A wheel carries the configs inside the package; a clone, and an editable install of it, has them at its top.
CONFIGS = next(folder for folder in (PACKAGE / "configs", PACKAGE.parents[1] / "configs") if folder.is_dir())
