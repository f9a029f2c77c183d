"""Fabricated run folders: numbers by hand, no training."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillery.results.layout import PREDICTIONS
from distillery.results.record import RunRecord

TEACHER = {
    "source": "teacher", "sha256": "t0", "score": 0.98,
    "params": 270_000, "flops": 40_000_000, "latency_ms": 3.0,
}  # fmt: skip


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """make_run(method, seed, score, **changes to the record) writes and returns a run folder in tmp_path."""

    def make(
        method: str,
        seed: int,
        score: float | None,
        *,
        folder: str | None = None,
        teacher: dict[str, Any] | None = None,
        predictions: dict[str, Sequence[int]] | None = None,
        **changes: Any,
    ) -> Path:
        path = tmp_path / (folder or f"{method}_seed{seed}")
        values: dict[str, Any] = {
            "name": path.name,
            "method": method,
            "seed": seed,
            "config_hash": f"{method}-{seed}",
            "status": "finished",
            "data": {
                "name": "digits",
                "fingerprint": f"f{seed}",
                "train": 100,
                "val": 200,
                "test": 4,
                "score_name": "accuracy",
            },
            "teachers": {} if method == "baseline" else {"main": teacher or TEACHER},
            "student_sha256": f"s-{path.name}",
            "metrics": {"last": {"epoch": 9, "test_score": score}, "best": {"epoch": 5, "test_score": 0.5}},
            "cost": {"params": 5000, "flops": 600_000, "latency_ms": 0.3 + 0.1 * seed},
            "seconds": 2.0,
        }
        RunRecord(**{**values, **changes}).write(path)
        if predictions is not None:
            np.savez(path / PREDICTIONS, **{name: np.array(array) for name, array in predictions.items()})
        return path

    return make
