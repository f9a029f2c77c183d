"""Fixtures of the tests of whole runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distillery.runs.run import Result
from fixtures.runs import train_student


@pytest.fixture(scope="session")
def run(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Result]:
    """`run(overrides…)`: a small student's run in a folder of its own."""

    def trained(*overrides: str, callbacks: Any = ()) -> Result:
        return train_student(tmp_path_factory.mktemp("student") / "run", teacher, *overrides, callbacks=callbacks)

    return trained
