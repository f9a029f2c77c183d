"""Runs on other training data are compared if they are scored on the same test samples, and only then."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from distillery.core.errors import UserError
from distillery.results.report.collect import collect
from distillery.results.report.selection import select


def made(make_run: Callable[..., Path], name: str, target: list[int], method: str) -> None:
    predictions = {"index": np.arange(4)[::-1], "target": np.array(target), "student": np.zeros(4, int)}
    folder = make_run(method, 0, 0.5, predictions=predictions)
    record = json.loads((folder / "run.json").read_text())
    record["data"]["name"] = name
    (folder / "run.json").write_text(json.dumps(record))


def test_who_wrote_the_labels_may_differ(make_run: Callable[..., Path], tmp_path: Path) -> None:
    made(make_run, "few", [0, 1, 1, 0], "baseline")
    made(make_run, "answers", [0, 1, 1, 0], "model_labels")
    assert [run.record.method for run in select(collect([tmp_path])).students] == ["baseline", "model_labels"]


def test_other_test_samples_are_refused(make_run: Callable[..., Path], tmp_path: Path) -> None:
    made(make_run, "few", [0, 1, 1, 0], "baseline")
    made(make_run, "answers", [0, 1, 0, 0], "model_labels")
    with pytest.raises(UserError, match=r"are on different data: few .* in .*, answers .* in "):
        select(collect([tmp_path]))
