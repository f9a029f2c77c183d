"""Where the project's own files lie."""

from pathlib import Path

CONFIGS = Path(__file__).parents[3] / "configs"
